package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// settings are the flags that build the config object of an issuer or a target: a file, then single names over it.
type settings struct {
	file     string
	set, big []string
}

func (x *settings) flags(c *cobra.Command) {
	c.Flags().StringVar(&x.file, "config", "", "file with the settings, JSON or YAML; - is stdin")
	c.Flags().StringArrayVar(&x.set, "set", nil, "a setting as name=value; a value that is JSON (3, true, [\"a\"]) is taken as such; may be repeated")
	c.Flags().StringArrayVar(&x.big, "set-file", nil, "a setting as name=FILE, whose content is the value: for secrets and PEM; may be repeated")
}

// secretNames are settings that do not belong on a command line, where every process of the host can read them.
var secretNames = regexp.MustCompile(`(?i)(password|secret|token|_key|^key_pem|credential)s?$`)

// over gives base with the settings put over it.
func (x settings) over(s *session, base map[string]any) (map[string]any, error) {
	out := map[string]any{}
	for k, v := range base {
		out[k] = v
	}
	if x.file != "" {
		b, err := readInput(s, x.file)
		if err != nil {
			return nil, err
		}
		var m map[string]any
		if yaml.Unmarshal(b, &m) != nil {
			return nil, usage("--config must be an object in JSON or YAML")
		}
		for k, v := range m {
			out[k] = v
		}
	}
	for _, w := range x.set {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return nil, usage("a setting is written name=value")
		}
		if secretNames.MatchString(k) {
			return nil, usage("%s looks like a secret, which every process of this host could read on a command line: use --set-file %s=FILE", k, k)
		}
		out[k] = value(v)
	}
	for _, w := range x.big {
		k, file, ok := strings.Cut(w, "=")
		if !ok || k == "" || file == "" {
			return nil, usage("a setting from a file is written name=FILE")
		}
		b, err := readInput(s, file)
		if err != nil {
			return nil, err
		}
		out[k] = strings.TrimRight(string(b), "\r\n")
	}
	return out, nil
}

// value is JSON where it reads as a number, a truth value, a list or an object; everything else is text.
func value(s string) any {
	var v any
	if json.Unmarshal([]byte(s), &v) != nil || v == nil {
		return s
	}
	return v
}

// maxInput bounds a file of settings or PEM.
const maxInput = 1 << 20

func readInput(s *session, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(io.LimitReader(s.cmd.InOrStdin(), maxInput))
	}
	b, err := os.ReadFile(file) // #nosec G304 -- named by the user
	if err != nil {
		return nil, usage("reading %s: %s", file, err)
	}
	if len(b) > maxInput {
		return nil, usage("%s is too large", file)
	}
	return b, nil
}

// object is a config that was read back.
func object(raw json.RawMessage) (map[string]any, error) {
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("the settings that the server shows are no object: %w", err)
	}
	return m, nil
}
