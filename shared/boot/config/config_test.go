package config

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"certctl/shared/secret"
)

// Inner is an exported embedded struct, as programs embed.
type Inner struct {
	URL secret.Text `env:"CERTCTL_DATABASE_URL" secret:"true"`
	Max int         `env:"CERTCTL_MAX"`
}

func (i *Inner) Complete() []Problem {
	if i.Max > 10 {
		return []Problem{{"CERTCTL_MAX", "is more than ten"}}
	}
	return nil
}

type program struct {
	Inner
	Key   secret.Text   `env:"CERTCTL_KEY" secret:"true" set:"openssl rand -base64 32"`
	Name  string        `env:"CERTCTL_NAME" set:"any name"`
	Every time.Duration `env:"CERTCTL_EVERY" envDefault:"5m"`
	On    bool          `env:"CERTCTL_ON"`
}

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// problems loads and returns the variables at fault and the whole text.
func problems(t *testing.T, environ []string, need ...string) ([]string, string) {
	t.Helper()
	_, err := Load[program](environ, need...)
	if err == nil {
		return nil, ""
	}
	e, ok := err.(*Error)
	if !ok {
		t.Fatalf("not an *Error: %v", err)
	}
	var names []string
	for _, p := range e.Problems {
		names = append(names, p.Variable)
	}
	slices.Sort(names)
	return names, err.Error()
}

func TestAVariableMayBeAValueOrAFile(t *testing.T) {
	t.Parallel()
	p, err := Load[program]([]string{
		"CERTCTL_NAME=here", "CERTCTL_KEY_FILE=" + file(t, "s3cr3t value\n"), "CERTCTL_MAX=7", "CERTCTL_ON=true", "PATH=/bin",
	})
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "here" || p.Key.Reveal() != "s3cr3t value" || p.Max != 7 || !p.On || p.Every != 5*time.Minute {
		t.Errorf("%+v with key %q", p, p.Key.Reveal())
	}
}

func TestLineBreaksAtTheEndOfAFileAreNotPartOfTheValue(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{"a b \r\n": "a b ", "a\n\n": "a", "a\nb\n": "a\nb", "a": "a"} {
		p, err := Load[program]([]string{"CERTCTL_NAME_FILE=" + file(t, content)})
		if err != nil || p.Name != want {
			t.Errorf("%q: got %q, %v", content, p.Name, err)
		}
	}
}

func TestEveryFaultIsNamedAtOnceAndNoValueIsShown(t *testing.T) {
	t.Parallel()
	const leak = "hunter2"
	names, text := problems(t, []string{
		"CERTCTL_MAX=" + leak, "CERTCTL_EVERY=" + leak, "CERTCTL_ON=" + leak,
		"CERTCTL_KEY=" + leak, "CERTCTL_KEY_FILE=/nowhere/" + leak,
	}, "CERTCTL_NAME")
	want := []string{"CERTCTL_EVERY", "CERTCTL_KEY", "CERTCTL_MAX", "CERTCTL_NAME", "CERTCTL_ON"}
	if !slices.Equal(names, want) {
		t.Errorf("named %v, want %v", names, want)
	}
	if strings.Contains(text, leak) {
		t.Errorf("the message shows a value: %s", text)
	}
	for _, part := range []string{"any name", "CERTCTL_NAME_FILE", "a duration such as", "true or false", "whole number"} {
		if !strings.Contains(text, part) {
			t.Errorf("the message does not say %q: %s", part, text)
		}
	}
}

func TestFilesThatCannotBeTheValueStopTheStart(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{
		"missing": "/nowhere/at/all", "empty": file(t, "\n"), "folder": t.TempDir(), "large": file(t, strings.Repeat("x", maxFile+1)),
	} {
		names, text := problems(t, []string{"CERTCTL_KEY_FILE=" + path}, "CERTCTL_KEY")
		if !slices.Equal(names, []string{"CERTCTL_KEY_FILE"}) || strings.Contains(text, path) {
			t.Errorf("%s: named %v in %s", name, names, text)
		}
	}
}

func TestAnEmptyVariableIsNotSet(t *testing.T) {
	t.Parallel()
	p, err := Load[program]([]string{"CERTCTL_EVERY=", "CERTCTL_NAME=", "CERTCTL_NAME_FILE=" + file(t, "n")})
	if err != nil || p.Every != 5*time.Minute || p.Name != "n" {
		t.Errorf("%+v, %v", p, err)
	}
	if names, _ := problems(t, []string{"CERTCTL_NAME="}, "CERTCTL_NAME"); len(names) != 1 {
		t.Errorf("an empty variable that is needed: %v", names)
	}
}

func TestPlaceholdersAreNoSecrets(t *testing.T) {
	t.Parallel()
	zero := make([]byte, 32)
	for _, s := range []string{
		"changeme", "ChangeMe-please", "change-me", "replace_me", "your-token-here", "example", "<your key>", "${MASTER_KEY}", "{{ .Values.key }}",
		"xxxxxxxx", "00000000000000000000000000000000", base64.StdEncoding.EncodeToString(zero), "0000", "password", "secret", "TODO", "placeholder",
		"postgres://certctl:changeme@db.corp.internal/certctl", "host=db user=x password=changeme dbname=y", "postgres://u:<password>@h/d",
	} {
		if !Placeholder(s) {
			t.Errorf("taken for a secret: %s", s)
		}
		if names, text := problems(t, []string{"CERTCTL_KEY=" + s}); !slices.Equal(names, []string{"CERTCTL_KEY"}) || !strings.Contains(text, "openssl rand") {
			t.Errorf("%q: %v %s", s, names, text)
		}
	}
	for _, s := range []string{
		"3q2+7wABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhs=", "certctl_kQ_abc", "postgres://postgres:postgres@127.0.0.1:5432/example",
		"postgres://u@/certctl?host=/run/example", "postgres://certctl:x9!kk@changeme.example/db", "host=db.example.com user=x password=k9fj dbname=y",
	} {
		if Placeholder(s) {
			t.Errorf("taken for a placeholder: %s", s)
		}
	}
}

func TestCompleteOfEmbeddedStructsIsAskedOnce(t *testing.T) {
	t.Parallel()
	names, _ := problems(t, []string{"CERTCTL_MAX=11"})
	if !slices.Equal(names, []string{"CERTCTL_MAX"}) {
		t.Errorf("named %v", names)
	}
}

func TestDurationsAreDigitsAndAUnit(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{"30s": 30 * time.Second, "2d": 48 * time.Hour, "0s": 0, "1h30m": -1, "5": -1, "-5s": -1, "999999999d": -1} {
		p, err := Load[program]([]string{"CERTCTL_EVERY=" + s})
		if (err != nil) != (want < 0) || err == nil && p.Every != want {
			t.Errorf("%s: %s, %v", s, p.Every, err)
		}
	}
}

func TestMisspelledVariablesAreFound(t *testing.T) {
	t.Parallel()
	got := Unknown[program]([]string{"CERTCTL_NAME=a", "CERTCTL_NAME_FILE=b", "CERTCTL_NAEM=x", "CERTCTL_MAX_FILES=1", "HOME=/"})
	if !slices.Equal(got, []string{"CERTCTL_MAX_FILES", "CERTCTL_NAEM"}) {
		t.Errorf("unknown: %v", got)
	}
}
