package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"certctl/shared/fault"
)

// strictJSON reads a config object into a struct: names must be those of its json tags, exactly, and once. Faults name the
// field under config.
func strictJSON(raw json.RawMessage, into any) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	known := map[string]bool{}
	t := reflect.TypeOf(into).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		known[name] = true
	}
	var bad []fault.Field
	names, err := objectNames(raw)
	if err != nil {
		return fault.BadField("config", "must be a JSON object")
	}
	seen := map[string]bool{}
	for _, n := range names {
		switch {
		case !known[n]:
			bad = append(bad, fault.Field{Field: "config", Detail: "has a field that this type does not know; it knows " + strings.Join(slices.Sorted(maps.Keys(known)), ", ")})
		case seen[n]:
			bad = append(bad, fault.Field{Field: "config." + n, Detail: "is given twice"})
		}
		seen[n] = true
	}
	if len(bad) > 0 {
		return fault.BadFields(bad[:1]...)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		var te *json.UnmarshalTypeError
		if errors.As(err, &te) && te.Field != "" {
			return fault.BadField("config."+te.Field, "has the wrong type")
		}
		return fault.BadField("config", "has a value that cannot be read")
	}
	return nil
}

// objectNames are the names of an object's members, in order.
func objectNames(raw json.RawMessage) (names []string, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		names = append(names, t.(string))
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing data")
	}
	return names, nil
}
