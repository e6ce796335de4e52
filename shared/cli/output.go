package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"gopkg.in/yaml.v3"
)

// printer shows results in the form that was asked for.
type printer struct {
	out, err  io.Writer
	form      string // table, json, yaml, name
	noHeaders bool
	colour    bool // on stdout
	terminal  bool // stderr is one
	now       func() time.Time
}

func (a *App) printer(cmd *cobra.Command) (*printer, error) {
	form := a.flags.output
	if !slices.Contains([]string{"table", "json", "yaml", "name"}, form) {
		return nil, usage("--output is one of table, json, yaml and name")
	}
	p := &printer{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), form: form, noHeaders: a.flags.noHeaders, now: time.Now}
	p.colour = isTerminal(cmd.OutOrStdout()) && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
	p.terminal = isTerminal(cmd.ErrOrStderr()) && a.Getenv("TERM") != "dumb"
	return p, nil
}

// isTerminal reports whether a stream is a person's.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) // #nosec G115 -- a file descriptor
}

// note says something beside the result.
func (p *printer) note(format string, args ...any) {
	fmt.Fprintf(p.err, format+"\n", args...)
}

// column is a column of a noun's table.
type column[T any] struct {
	head string
	cell func(*printer, T) string
}

// view is how a noun is shown.
type view[T any] struct {
	columns []column[T]
	id      func(T) string
}

// list shows several things: a table, one JSON or YAML array, or their ids.
func list[T any](p *printer, v view[T], rows []T) error {
	switch p.form {
	case "json", "yaml":
		if rows == nil {
			rows = []T{}
		}
		return p.encode(rows)
	case "name":
		for _, r := range rows {
			if _, err := fmt.Fprintln(p.out, v.id(r)); err != nil {
				return err
			}
		}
		return nil
	}
	return p.table(tableOf(p, v, rows))
}

// one shows one thing: its columns under each other and further details, or its JSON, YAML or id.
func one[T any](p *printer, v view[T], row T, more ...detail) error {
	switch p.form {
	case "json", "yaml":
		return p.encode(row)
	case "name":
		_, err := fmt.Fprintln(p.out, v.id(row))
		return err
	}
	var all []detail
	for _, c := range v.columns {
		all = append(all, detail{c.head, c.cell(p, row)})
	}
	return p.details(append(all, more...))
}

func tableOf[T any](p *printer, v view[T], rows []T) [][]string {
	var t [][]string
	if !p.noHeaders {
		var head []string
		for _, c := range v.columns {
			head = append(head, c.head)
		}
		t = append(t, head)
	}
	for _, r := range rows {
		var cells []string
		for _, c := range v.columns {
			cells = append(cells, c.cell(p, r))
		}
		t = append(t, cells)
	}
	return t
}

// table prints rows in aligned columns, two spaces apart. Colour is put on after the alignment.
func (p *printer) table(rows [][]string) error {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			row[i] = clean(cell)
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(row[i]))
		}
	}
	var b bytes.Buffer
	for n, row := range rows {
		for i, cell := range row {
			shown := cell
			if n > 0 || p.noHeaders {
				shown = p.paint(cell)
			}
			b.WriteString(shown)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := p.out.Write(b.Bytes())
	return err
}

// detail is a label and its text.
type detail struct{ label, text string }

func (p *printer) details(all []detail) error {
	rows := make([][]string, len(all))
	for i, d := range all {
		rows[i] = []string{strings.ToLower(d.label) + ":", d.text}
	}
	return (&printer{out: p.out, noHeaders: true, colour: p.colour}).table(rows)
}

// paints are the colours of words that stand alone in a cell.
var paints = map[string]string{
	"active": "32", "Completed": "32", "online": "32", "ok": "32",
	"renewing": "36", "pending": "36", "Running": "36", "Pending": "36",
	"expiring": "33", "AwaitingApproval": "33", "AwaitingCSR": "33",
	"expired": "31", "failed": "31", "revoked": "31", "Failed": "31", "offline": "31",
	"archived": "2", "retired": "2", "Cancelled": "2", "disabled": "2",
}

func (p *printer) paint(cell string) string {
	if c := paints[cell]; p.colour && c != "" {
		return "\x1b[" + c + "m" + cell + "\x1b[0m"
	}
	return cell
}

// encode prints the value as the API writes it, in JSON or, with the same order of names, in YAML.
func (p *printer) encode(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	if p.form != "yaml" {
		_, err := p.out.Write(b.Bytes())
		return err
	}
	var n yaml.Node // JSON is YAML; a node keeps the order
	if err := yaml.Unmarshal(b.Bytes(), &n); err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	plain(&n)
	y := yaml.NewEncoder(p.out)
	y.SetIndent(2)
	defer func() { _ = y.Close() }()
	return y.Encode(&n)
}

// oldWords are texts that a reader of YAML 1.1 takes for something else: truth values, numbers, times.
var oldWords = regexp.MustCompile(`(?i)^([-+.0-9].*|y|n|yes|no|on|off)$`)

// plain takes JSON's braces and quotes off. What needs quotes by YAML 1.2 gets them again from the encoder.
func plain(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || !oldWords.MatchString(n.Value) {
		n.Style = 0
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// ago is how long something is past: "5m", "3d".
func (p *printer) ago(t time.Time) string { return span(p.now().Sub(t)) }

// when is a moment seen from now: "in 41d", "5m ago", "-" for never.
func (p *printer) when(t *time.Time) string {
	if t == nil {
		return "-"
	}
	if d := t.Sub(p.now()); d > 0 {
		return "in " + span(d)
	}
	return p.ago(*t) + " ago"
}

// moment is a time with what that means from here: "2026-01-02 15:04:05 UTC (in 41d)".
func (p *printer) moment(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC") + " (" + p.when(t) + ")"
}

// span is a length of time in the unit that people would use.
func span(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	case d < 2*365*24*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
	return fmt.Sprintf("%dy", int(d.Hours()/24/365))
}

// text is an optional text, "-" for none.
func text[S ~string](s *S) string {
	if s == nil || *s == "" {
		return "-"
	}
	return string(*s)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
