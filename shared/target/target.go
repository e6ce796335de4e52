// Package target owns the last mile: how a certificate gets into the place that serves it, and the proof that it is served.
//
// A driver reads a target's config and says what a bundle looks like there; the engine drives every deployment through the
// same steps (check, backup, journal, stage, swap, validate, reload, verify, commit), records them, and rolls back when one
// fails. The package knows nothing of jobs, versions or SQL: the agent and the worker both link it.
//
// The surprising rule: nothing is changed before a journal on disk says how to undo it. A process that is killed between the
// renames of certificate and key leaves a pair that does not match; Engine.Recover puts the old pair back before anything else.
package target

import (
	"context"
	"encoding/json"
	"net"
	"reflect"
	"sort"
	"strings"

	"certctl/shared/fault"
)

// Driver reads the config of one kind of target. It looks at nothing but its argument, so the server calls it to validate
// input. Faults are Invalid and name the field as "config.<name>".
type Driver func(config json.RawMessage) (Target, error)

// Target is one configured place.
type Target interface {
	// Begin prepares the deployment of a bundle. It does nothing yet.
	Begin(b *Bundle, p Place) Deployment
}

// Deployment is one bundle on its way into one place. The engine calls the methods in this order; after a failure in Swap or
// later it calls RollBack, then Validate, Reload and Commit. Each is safe to repeat.
type Deployment interface {
	// Check refuses what the host forbids and what cannot work, before anything changes. held: the place has this bundle.
	Check(ctx context.Context) (held bool, err error)
	// Backup keeps the present version and returns its leaf's SHA-256, "" if there is none.
	Backup(ctx context.Context) (previous string, err error)
	// Journal writes down, durably, how to undo what follows.
	Journal(ctx context.Context) error
	// Stage puts the new version beside the old one.
	Stage(ctx context.Context) error
	// Swap puts the new version in place of the old one; owner and mode stay.
	Swap(ctx context.Context) error
	// Validate asks the server whether it would accept what is in place.
	Validate(ctx context.Context) error
	// Reload makes the server use what is in place.
	Reload(ctx context.Context) error
	// RollBack puts the previous version back, or nothing where there was nothing.
	RollBack(ctx context.Context) error
	// Commit closes the journal, after success and after a roll back; the previous version stays kept.
	Commit(ctx context.Context) error
}

// Place is what a deployment gets from the engine.
type Place struct {
	Host  *Host
	Dir   string                       // the engine's folder: journals and previous versions
	Name  string                       // file-safe name of the target, unique in Dir
	Point func(point string, w Moment) // to be called around each part of a step that a crash could divide
}

// DialContext opens a connection; shared/dial and net.Dialer have one.
type DialContext func(ctx context.Context, network, address string) (net.Conn, error)

// Registry maps target types to drivers. Each program lists its own, so that it links only what it uses.
type Registry map[string]Driver

// Open finds the driver and lets it read the config.
func (r Registry) Open(kind string, config json.RawMessage) (Target, error) {
	d, ok := r[kind]
	if !ok {
		return nil, fault.BadField("type", "there is no such target type here; this program has %s", strings.Join(r.Kinds(), ", "))
	}
	return d(config)
}

// Kinds lists the types in alphabetical order.
func (r Registry) Kinds() []string {
	kinds := make([]string, 0, len(r))
	for k := range r {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	return kinds
}

// Decode reads a driver's config into the struct that into points to. Names must be those of the json tags, exactly; unknown
// names and wrong types are Invalid faults that name the field.
func Decode(config json.RawMessage, into any) error {
	raw := map[string]json.RawMessage{}
	if len(config) > 0 {
		if err := json.Unmarshal(config, &raw); err != nil {
			return fault.BadField("config", "must be a JSON object")
		}
	}
	v := reflect.ValueOf(into).Elem()
	var bad []fault.Field
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		value, ok := raw[name]
		delete(raw, name)
		if !ok {
			continue
		}
		if err := json.Unmarshal(value, v.Field(i).Addr().Interface()); err != nil {
			bad = append(bad, fault.Field{Field: "config." + name, Detail: "must be a " + jsonKind(v.Field(i).Type())})
		}
	}
	for name := range raw {
		bad = append(bad, fault.Field{Field: "config." + name, Detail: "is not known to this target type"})
	}
	if len(bad) > 0 {
		sort.Slice(bad, func(i, j int) bool { return bad[i].Field < bad[j].Field })
		return fault.BadFields(bad...)
	}
	return nil
}

func jsonKind(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	default:
		return "value of another type"
	}
}
