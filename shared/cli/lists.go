package cli

import (
	"bytes"
	"encoding/json"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"time"

	"certctl/shared/client"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// filter is a flag that narrows a list: the query name it stands for, and how its value becomes an id or a time.
type filter struct {
	flag, query, help string
	value             func(s *session, v string) (string, error)
	yes               bool // a flag without a value
}

// ref makes a filter by a noun that is named by id or name.
func ref[T any](k kind[T], flag, query string) filter {
	return filter{flag: flag, query: query, help: "only of this " + k.noun + " (name or id)", value: func(s *session, v string) (string, error) { return k.idOf(s, v) }}
}

func plainFilter(flag, help string) filter {
	return filter{flag: flag, query: strings.ReplaceAll(flag, "-", "_"), help: help}
}

// query reads the filters that were given.
func query(s *session, filters []filter) (url.Values, error) {
	q := url.Values{}
	for _, f := range filters {
		v := s.cmd.Flags().Lookup(f.flag).Value.String()
		if !s.cmd.Flags().Changed(f.flag) || v == "" {
			continue
		}
		var err error
		if f.value != nil {
			if v, err = f.value(s, v); err != nil {
				return nil, err
			}
		}
		q.Set(f.query, v)
	}
	return q, nil
}

func filterFlags(c *cobra.Command, filters []filter) {
	for _, f := range filters {
		if f.yes {
			c.Flags().Bool(f.flag, false, f.help)
			continue
		}
		c.Flags().String(f.flag, "", f.help)
	}
}

// Bounds of a list that was not asked for more.
const defaultLimit = 500

// lister describes the verb "list" of a noun.
type lister[T any] struct {
	noun    string // plural, for people
	example string
	view    view[T]
	filters []filter
	sorts   []string // beside created_at
	all     func(s *session, q url.Values) iter.Seq2[T, error]
}

// listVerb is the verb "list".
func listVerb[T any](a *App, l lister[T]) *cobra.Command {
	c := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List " + l.noun, Example: l.example, Args: between(0, 0)}
	f := c.Flags()
	filterFlags(c, l.filters)
	f.String("sort", "", "order: "+strings.Join(append([]string{"created_at"}, l.sorts...), ", ")+"; with - before it the reverse (default -created_at)")
	limit := f.Int("limit", defaultLimit, "how many at most; 0 is all")
	w := watchFlags(f)
	c.RunE = a.run(func(s *session, _ []string) error {
		q, err := query(s, l.filters)
		if err != nil {
			return err
		}
		if sort, _ := f.GetString("sort"); sort != "" {
			q.Set("sort", sort)
		}
		return watch(s, w, func() ([]T, error) { return collect(s, l.all(s, pageOf(q, *limit)), *limit, l.noun) }, func(rows []T) error { return list(s.printer, l.view, rows) })
	})
	return c
}

// pageOf asks for no longer pages than are shown.
func pageOf(q url.Values, limit int) url.Values {
	if limit > 0 && limit < client.MaxLimit {
		q.Set("limit", strconv.Itoa(limit))
	}
	return q
}

// collect takes up to limit of a list, and says so when there is more.
func collect[T any](s *session, all iter.Seq2[T, error], limit int, noun string) ([]T, error) {
	var out []T
	for v, err := range all {
		if err != nil {
			return nil, err
		}
		if limit > 0 && len(out) == limit {
			s.note("There are more %s than the %d shown; --limit 0 shows all.", noun, limit)
			break
		}
		out = append(out, v)
	}
	return out, nil
}

// watching are the flags of --watch.
type watching struct {
	on    *bool
	every *time.Duration
}

func watchFlags(f *pflag.FlagSet) watching {
	return watching{f.BoolP("watch", "w", false, "go on, and print again whenever something changed"), f.Duration("interval", 2*time.Second, "how often --watch looks")}
}

// watch shows what look gives, once or whenever it changed. It ends with the context; being interrupted is how a person ends
// it, and no failure.
func watch[T any](s *session, w watching, look func() (T, error), show func(T) error) error {
	v, err := look()
	if err != nil {
		return err
	}
	if !*w.on {
		return show(v)
	}
	var last []byte
	for first := true; ; first = false {
		state, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if !bytes.Equal(state, last) {
			last = state
			s.again(first)
			if err := show(v); err != nil {
				return err
			}
		}
		select {
		case <-s.ctx.Done():
			return ended(s)
		case <-time.After(max(*w.every, 100*time.Millisecond)):
		}
		fresh, err := look()
		switch {
		case s.ctx.Err() != nil:
			return ended(s)
		case code(err) == codeUnavailable:
			s.note("%s", clean(err.Error()))
		case err != nil:
			return err
		default:
			v = fresh
		}
	}
}

func ended(s *session) error {
	if s.cmd.Context().Err() != nil {
		return nil
	}
	return s.ctx.Err()
}

// again parts one printing from the one before: a terminal is cleared, elsewhere tables get an empty line.
func (s *session) again(first bool) {
	switch {
	case s.colour:
		_, _ = s.out.Write([]byte("\x1b[H\x1b[2J"))
	case !first && s.form == "table":
		_, _ = s.out.Write([]byte("\n"))
	case !first && s.form == "yaml":
		_, _ = s.out.Write([]byte("---\n"))
	}
}

// getVerb is the verb "get": one or several things by name or id.
func getVerb[T any](a *App, k kind[T], v view[T], example string, get func(s *session, id string) (T, error), more func(s *session, row T) []detail) *cobra.Command {
	c := &cobra.Command{Use: "get REF…", Short: "Show a " + k.noun, Example: example, Args: between(1, -1), ValidArgsFunction: k.complete(a, true)}
	w := watchFlags(c.Flags())
	c.RunE = a.run(func(s *session, args []string) error {
		return s.each(args, func(arg string) error {
			id, err := k.idOf(s, arg)
			if err != nil {
				return err
			}
			return watch(s, w, func() (T, error) { return get(s, id) }, func(row T) error {
				if more == nil || s.form != "table" {
					return one(s.printer, v, row)
				}
				return one(s.printer, v, row, more(s, row)...)
			})
		})
	})
	return c
}

// archiveVerb is the verb "archive".
func archiveVerb[T any](a *App, k kind[T], example string, archive func(s *session, id string) error) *cobra.Command {
	return yesFlag(&cobra.Command{Use: "archive REF…", Short: "Archive a " + k.noun, Example: example, Args: between(1, -1), ValidArgsFunction: k.complete(a, true),
		RunE: a.run(func(s *session, args []string) error {
			ids, err := k.idsOf(s, args)
			if err != nil {
				return err
			}
			if err := s.ask("This archives " + strings.Join(args, ", ") + "."); err != nil {
				return err
			}
			return s.each(ids, func(id string) error {
				if err := archive(s, id); err != nil {
					return err
				}
				s.note("%s is archived.", id)
				return nil
			})
		})})
}

// tags reads k=v words.
func tags(words []string) (map[string]string, error) {
	out := map[string]string{}
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return nil, usage("a tag is written name=value")
		}
		out[k] = v
	}
	return out, nil
}
