// Package config reads a program's configuration from environment variables into one commented struct.
//
// Every variable has a twin with _FILE appended that names a file holding the value, so that secrets can be mounted. All
// faults are reported at once, each with its variable's name and what to set; a value is never part of a message. The
// package knows no variable by name: the struct's tags do.
//
// Tags of a field: env:"CERTCTL_X" names the variable, envDefault its default, set:"…" says what to set in words, and
// secret:"true" refuses values that were obviously copied from an example. A variable that is set but empty counts as not
// set, because deployment templates cannot leave a variable out.
package config

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Prefix is what the variables of certctl start with.
const Prefix = "CERTCTL_"

// fileSuffix makes the name of a variable's twin.
const fileSuffix = "_FILE"

// maxFile bounds what is read from a _FILE: more is the wrong file.
const maxFile = 64 << 10

// Problem is one variable that stops the start.
type Problem struct {
	Variable string
	Detail   string // what is wrong and what to set, never the value
}

// Error names every variable at fault.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("the configuration has faults:")
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n  %s %s", p.Variable, p.Detail)
	}
	return b.String()
}

// Completer is a configuration struct, or a struct embedded in one, that fills derived defaults and checks what tags
// cannot say. It is called after parsing, embedded structs first, and must bear to be called again.
type Completer interface{ Complete() []Problem }

// Load parses environ (as of os.Environ) into a T, whose variables in need must be set. The error is an *Error.
func Load[T any](environ []string, need ...string) (T, error) {
	var t T
	vars, err := variablesOf(&t)
	if err != nil {
		return t, err
	}
	values, problems := resolve(vars, toMap(environ))
	for _, name := range need {
		i := slices.IndexFunc(vars, func(v variable) bool { return v.name == name })
		if i < 0 {
			return t, fmt.Errorf("configuration %T has no variable %s", t, name)
		}
		if _, ok := values[name]; !ok && !names(problems, name) {
			problems = append(problems, Problem{name, "is not set: set it, or " + name + fileSuffix + hint(vars[i])})
		}
	}
	for _, v := range vars {
		if s, ok := values[v.name]; ok && v.secret && Placeholder(s) {
			problems = append(problems, Problem{v.name, "still holds the text of an example: set your own" + hint(v)})
		}
	}
	if err := env.ParseWithOptions(&t, options(values)); err != nil {
		problems = append(problems, parseProblems[T](err, vars, values)...)
	}
	if len(problems) == 0 {
		problems = complete(reflect.ValueOf(&t).Elem())
	}
	if len(problems) > 0 {
		var zero T
		return zero, &Error{problems}
	}
	return t, nil
}

// Unknown are the names of the CERTCTL_ variables in environ that T does not read, sorted: misspelled ones, or another
// program's.
func Unknown[T any](environ []string) []string {
	var t T
	vars, _ := variablesOf(&t)
	var out []string
	for name := range toMap(environ) {
		known := slices.ContainsFunc(vars, func(v variable) bool { return name == v.name || name == v.name+fileSuffix })
		if strings.HasPrefix(name, Prefix) && !known {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// variable is one field's name and tags.
type variable struct {
	name, set string
	secret    bool
	typ       reflect.Type
}

func hint(v variable) string {
	if v.set == "" {
		return ""
	}
	return " (" + v.set + ")"
}

// variablesOf walks a pointer to a struct and the structs embedded in it.
func variablesOf(p any) ([]variable, error) {
	typ := reflect.TypeOf(p).Elem()
	if typ.Kind() != reflect.Struct {
		return nil, errors.New("a configuration is a struct")
	}
	var out []variable
	for _, f := range reflect.VisibleFields(typ) {
		name, _, _ := strings.Cut(f.Tag.Get("env"), ",")
		if name == "" || name == "-" {
			continue
		}
		out = append(out, variable{name: name, set: f.Tag.Get("set"), secret: f.Tag.Get("secret") == "true", typ: f.Type})
	}
	return out, nil
}

// resolve takes each variable's value from the environment or from its file.
func resolve(vars []variable, environ map[string]string) (map[string]string, []Problem) {
	values := map[string]string{}
	var problems []Problem
	for _, v := range vars {
		value, file := environ[v.name], environ[v.name+fileSuffix]
		switch {
		case value != "" && file != "":
			problems = append(problems, Problem{v.name, "and " + v.name + fileSuffix + " are both set: keep one"})
		case file != "":
			s, detail := fromFile(file)
			if detail != "" {
				problems = append(problems, Problem{v.name + fileSuffix, detail})
				continue
			}
			values[v.name] = s
		case value != "":
			values[v.name] = value
		}
	}
	return values, problems
}

// fromFile reads a value, without the line break that editors and echo leave at the end. The file's name is not shown: it
// may be the secret itself, put into the wrong variable.
func fromFile(name string) (value, detail string) {
	f, err := os.Open(name) // #nosec G304 -- the operator names the file in the process's own environment
	if err != nil {
		reason := "cannot be read"
		if errors.Is(err, os.ErrNotExist) {
			reason = "names a file that does not exist"
		} else if errors.Is(err, os.ErrPermission) {
			reason = "names a file that this user may not read"
		}
		return "", reason + ": set it to the path of a file that holds the value"
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch s := strings.TrimRight(string(raw), "\r\n"); {
	case err != nil:
		return "", "names a file that cannot be read: set it to the path of a file that holds the value"
	case len(raw) > maxFile:
		return "", "names a file of more than 64 KB: set it to the path of a file that holds only the value"
	case s == "":
		return "", "names a file that is empty: put the value into it"
	default:
		return s, ""
	}
}

func options(values map[string]string) env.Options {
	return env.Options{
		Environment: values,
		FuncMap:     map[reflect.Type]env.ParserFunc{reflect.TypeFor[time.Duration](): parseDuration},
	}
}

// parseDuration reads certctl's durations: digits and one of s, m, h, d (24 h).
func parseDuration(s string) (any, error) {
	malformed := errors.New("malformed duration")
	if len(s) < 2 || len(s) > 10 || strings.Trim(s[:len(s)-1], "0123456789") != "" {
		return nil, malformed
	}
	unit := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}[s[len(s)-1]]
	n, err := strconv.ParseInt(s[:len(s)-1], 10, 64)
	if err != nil || unit == 0 || time.Duration(n) > math.MaxInt64/unit {
		return nil, malformed
	}
	return time.Duration(n) * unit, nil
}

// parseProblems finds the variables that do not parse. The library's error names struct fields and repeats values, so each
// variable is parsed alone instead.
func parseProblems[T any](all error, vars []variable, values map[string]string) []Problem {
	var out []Problem
	for _, v := range vars {
		s, ok := values[v.name]
		if !ok {
			continue
		}
		var t T
		if err := env.ParseWithOptions(&t, options(map[string]string{v.name: s})); err != nil {
			out = append(out, Problem{v.name, "is not " + form(v.typ) + hint(v)})
		}
	}
	if len(out) == 0 { // a default that does not parse, or a tag that is wrong: our own mistake
		out = append(out, Problem{"(program)", "has a wrong tag: " + all.Error()})
	}
	return out
}

// form says in words what a type accepts.
func form(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration such as 30s, 5m, 12h or 7d"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64 && t.PkgPath() == "":
		return "a whole number in range"
	default:
		return "one of the accepted values"
	}
}

// complete calls Complete on embedded structs, then on the struct itself. A promoted method is called twice; what it says
// is kept once.
func complete(v reflect.Value) []Problem {
	var out []Problem
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Anonymous && f.IsExported() && v.Field(i).Kind() == reflect.Struct {
			out = append(out, complete(v.Field(i))...)
		}
	}
	if c, ok := v.Addr().Interface().(Completer); ok {
		for _, p := range c.Complete() {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

func names(ps []Problem, variable string) bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return p.Variable == variable || p.Variable == variable+fileSuffix })
}

func toMap(environ []string) map[string]string {
	m := make(map[string]string, len(environ))
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			m[k] = v
		}
	}
	return m
}
