package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// figure is a line of the table: a value, what it is held against, and the goal of their ratio.
type figure struct {
	part, what, value, against string
	ratio                      float64
	goal                       goal
	why                        string // of a goal that is missed for a reason that is known
}

// goal is the least or the largest ratio; the zero value is none.
type goal struct {
	ratio float64
	most  bool
}

func atLeast(r float64) goal { return goal{ratio: r} }
func atMost(r float64) goal  { return goal{ratio: r, most: true} }

func (g goal) String() string {
	switch {
	case g.ratio == 0:
		return ""
	case g.most:
		return fmt.Sprintf("≤ %g", g.ratio)
	}
	return fmt.Sprintf("≥ %g", g.ratio)
}

func (g goal) verdict(r float64) string {
	switch {
	case g.ratio == 0:
		return ""
	case g.most && r <= g.ratio, !g.most && r >= g.ratio:
		return "met"
	}
	return "MISSED"
}

type report struct {
	part    string
	file    *os.File
	raw     *bufio.Writer
	figures []figure
}

func (r *report) open(path string) (err error) {
	r.file, err = os.Create(path) // #nosec G304 -- named by whoever runs the benchmark
	r.raw = bufio.NewWriter(r.file)
	return err
}

func (r *report) close() error {
	if err := r.raw.Flush(); err != nil {
		return err
	}
	fmt.Println("raw lines:", r.file.Name())
	return r.file.Close()
}

// say writes a raw line, to the file and to standard error.
func (r *report) say(what string, value any) {
	line := fmt.Sprintf("%s %-8s %s: %v", time.Now().UTC().Format("15:04:05"), r.part, what, value)
	_, _ = fmt.Fprintln(r.raw, line)
	_, _ = fmt.Fprintln(os.Stderr, line)
	_ = r.raw.Flush()
}

func (r *report) add(f figure) {
	f.part = r.part
	r.figures = append(r.figures, f)
	r.say("figure "+f.what, fmt.Sprintf("%s against %s: %.3g %s %s", f.value, f.against, f.ratio, f.goal, f.goal.verdict(f.ratio)))
}

func (r *report) table(w io.Writer) {
	_, _ = fmt.Fprintln(w, "\n| part | figure | value | against | ratio | goal | |\n|---|---|---|---|---|---|---|")
	for _, f := range r.figures {
		ratio, why := "", ""
		if f.ratio != 0 {
			ratio = fmt.Sprintf("%.3g", f.ratio)
		}
		verdict := f.goal.verdict(f.ratio)
		if verdict == "MISSED" && f.why != "" {
			why = ": " + f.why
		}
		_, _ = fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s%s |\n", f.part, f.what, f.value, f.against, ratio, f.goal, verdict, why)
	}
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	if len(s) == 0 {
		return 0
	}
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// series are the values of the candidates, by name, one per round.
type series map[string][]float64

func (s series) add(name string, v float64) { s[name] = append(s[name], v) }
func (s series) median(name string) float64 { return median(s[name]) }

func numbers(xs []float64) string {
	out := make([]string, len(xs))
	for i, x := range xs {
		out[i] = fmt.Sprintf("%.4g", x)
	}
	return strings.Join(out, " ")
}

// dump writes all rounds of a series.
func (r *report) dump(name string, s series) {
	keys := make([]string, 0, len(s))
	for k := range s {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		r.say(name+" "+k, numbers(s[k]))
	}
}
