package endpoint

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"
	"certctl/shared/span"

	"github.com/danielgtaylor/huma/v2"
)

const schemaPrefix = "#/components/schemas/"

// registry implements huma.Registry. It differs from huma's own in that identifiers and durations, whose packages know
// no huma, are texts with a pattern, and in that the document says which objects may be null.
type registry struct {
	document bool // for the document only: huma cannot validate by the schema of an object that may be null
	schemas  map[string]*huma.Schema
	types    map[string]reflect.Type
}

func newRegistry(document bool) *registry {
	return &registry{document: document, schemas: map[string]*huma.Schema{}, types: map[string]reflect.Type{}}
}

// Schema gives a type's schema, or a reference to it when it is an object with a name.
func (g *registry) Schema(t reflect.Type, allowRef bool, hint string) *huma.Schema {
	given := t
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if s := textSchema(t); s != nil {
		s.Nullable = s.Nullable || given.Kind() == reflect.Pointer
		s.PrecomputeMessages()
		return s
	}
	if t.Kind() == reflect.Array || t.Kind() == reflect.Slice {
		given = t
	}
	if !isObject(t) {
		return huma.SchemaFromType(g, given)
	}
	name := schemaName(t, hint)
	if known, ok := g.types[name]; ok && known != t {
		panic(fmt.Sprintf("endpoint: two types would be the schema %s: %s and %s", name, known, t))
	} else if !ok {
		g.types[name] = t
		g.schemas[name] = &huma.Schema{} // a type may contain itself
		g.schemas[name] = huma.SchemaFromType(g, given)
		if g.document {
			sayNull(t, g.schemas[name])
		}
	}
	if allowRef {
		return &huma.Schema{Ref: schemaPrefix + name}
	}
	return g.schemas[name]
}

// isObject reports whether the type is a JSON object with a name of its own.
func isObject(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[huma.SchemaProvider]()) &&
		!reflect.PointerTo(t).Implements(reflect.TypeFor[interface{ UnmarshalText([]byte) error }]())
}

// textSchema is the schema of the types that other packages write as text, else nil.
func textSchema(t reflect.Type) *huma.Schema {
	switch {
	case t == reflect.TypeFor[span.Duration]():
		return &huma.Schema{Type: huma.TypeString, Pattern: span.Pattern, Examples: []any{"30d"},
			PatternDescription: "a number and one of s, m, h, d"}
	case t.PkgPath() == "certctl/shared/id" && t.Kind() == reflect.Array:
		return idSchema(t)
	}
	return nil
}

// idSchema reads a noun's prefix off one of its identifiers: the UUIDv7 of the TypeID specification's example.
func idSchema(t reflect.Type) *huma.Schema {
	v := reflect.New(t)
	reflect.Copy(v.Elem(), reflect.ValueOf([]byte{0x01, 0x89, 0x0a, 0x5d, 0xac, 0x96, 0x77, 0x4b, 0xbc, 0xce, 0xb3, 0x02, 0x09, 0x9a, 0x80, 0x57}))
	example := v.Interface().(fmt.Stringer).String()
	prefix, _, _ := strings.Cut(example, "_")
	return &huma.Schema{
		Type: huma.TypeString, Nullable: true, Examples: []any{example},
		Pattern: "^" + prefix + "_[0-7][0-9a-hjkmnp-tv-z]{25}$", PatternDescription: "an identifier that starts with " + prefix + "_",
	}
}

// sayNull says which properties are null when unset: pointers to objects without omitempty are, an object's own id is not.
func sayNull(t reflect.Type, s *huma.Schema) {
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := s.Properties[name]
		if p != nil && name == "id" {
			p.Nullable = false
		}
		if p == nil || p.Ref == "" || f.Type.Kind() != reflect.Pointer || strings.Contains(options, "omit") {
			continue
		}
		s.Properties[name] = &huma.Schema{Description: p.Description, AnyOf: []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}}
	}
}

func schemaName(t reflect.Type, hint string) string {
	switch t {
	case reflect.TypeFor[problem.Document]():
		return "Problem"
	case reflect.TypeFor[fault.Field]():
		return "FieldError"
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// SchemaFromRef implements huma.Registry.
func (g *registry) SchemaFromRef(ref string) *huma.Schema {
	return g.schemas[strings.TrimPrefix(ref, schemaPrefix)]
}

// TypeFromRef implements huma.Registry.
func (g *registry) TypeFromRef(ref string) reflect.Type {
	return g.types[strings.TrimPrefix(ref, schemaPrefix)]
}

// Map implements huma.Registry.
func (g *registry) Map() map[string]*huma.Schema { return g.schemas }

// RegisterTypeAlias implements huma.Registry; nothing here needs aliases.
func (g *registry) RegisterTypeAlias(reflect.Type, reflect.Type) {
	panic("endpoint: type aliases are not supported")
}

// MarshalJSON gives the components of the document.
func (g *registry) MarshalJSON() ([]byte, error) { return json.Marshal(g.schemas) }
