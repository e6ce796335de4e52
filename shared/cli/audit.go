package cli

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var auditView = view[client.AuditEvent]{
	id: func(e client.AuditEvent) string { return e.ID },
	columns: []column[client.AuditEvent]{
		{"WHEN", func(_ *printer, e client.AuditEvent) string { return e.At.UTC().Format("2006-01-02 15:04:05 UTC") }},
		{"WHO", func(_ *printer, e client.AuditEvent) string { return e.Actor.Principal }},
		{"ACTION", func(_ *printer, e client.AuditEvent) string { return e.Action }},
		{"RESOURCE", func(_ *printer, e client.AuditEvent) string { return first(deref(e.ResourceID), e.ResourceType) }},
		{"ID", func(_ *printer, e client.AuditEvent) string { return e.ID }},
	},
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func timeFilter(flag, help string) filter {
	return filter{flag: flag, query: flag, help: help + ": a time, or a duration such as 24h for that long ago", value: func(s *session, v string) (string, error) {
		t, err := timeOf(v, s.now(), -1)
		return t.UTC().Format(time.RFC3339), err
	}}
}

func (a *App) auditCommand() *cobra.Command {
	list := listVerb(a, lister[client.AuditEvent]{noun: "audit events", view: auditView,
		filters: []filter{plainFilter("principal", "only what this principal did"), plainFilter("action", "only this action, e.g. certificate.created"), plainFilter("resource-type", "only about this kind, e.g. certificate"),
			{flag: "resource", query: "resource_id", help: "only about this id"}, {flag: "request", query: "request_id", help: "only of this request"}, timeFilter("since", "not before"), timeFilter("until", "before")},
		example: "  certctl audit list --since 24h --action certificate.created\n  certctl audit list --principal admin --limit 20",
		all:     func(s *session, q url.Values) iter.Seq2[client.AuditEvent, error] { return s.c.Audit.All(s.ctx, q) }})
	get := &cobra.Command{Use: "get ID…", Short: "Show audit events", Args: between(1, -1), Example: "  certctl audit get evt_01kb4h4yqxe0rv8m0n3q5s6t7v -o json",
		RunE: a.run(func(s *session, args []string) error {
			return s.each(args, func(id string) error {
				e, err := s.c.Audit.Get(s.ctx, id)
				if err != nil {
					return err
				}
				more := []detail{{"role", e.Actor.Role}, {"key", orDash(string(e.Actor.KeyID))}, {"request", text(e.RequestID)}}
				for _, k := range keysOf(e.Details) {
					more = append(more, detail{k, fmt.Sprint(e.Details[k])})
				}
				return one(s.printer, auditView, e, more...)
			})
		})}
	return group("audit", "The audit trail", nil, list, get, a.auditExport())
}

func keysOf(m map[string]any) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return sorted(out)
}

func (a *App) auditExport() *cobra.Command {
	c := &cobra.Command{Use: "export", Short: "Export the trail, one JSON object a line", Args: between(0, 0),
		Long: "Streams the events with the canonical bytes that were hashed and their leaf hashes. A file appears only when the export is whole.", Example: "  certctl audit export --since 30d --file audit.ndjson"}
	since := c.Flags().String("since", "", "not before: a time, or a duration such as 30d for that long ago")
	until := c.Flags().String("until", "", "before: a time, or a duration")
	file := c.Flags().StringP("file", "f", "", "write to this file (0600) instead of stdout")
	c.RunE = a.run(func(s *session, _ []string) error {
		from, err := pastOr(s, *since)
		if err != nil {
			return err
		}
		to, err := pastOr(s, *until)
		if err != nil {
			return err
		}
		if *file == "" {
			_, err := s.c.Audit.Export(s.ctx, from, to, s.out)
			return err
		}
		n, err := exportTo(*file, func(w io.Writer) (int64, error) { return s.c.Audit.Export(s.ctx, from, to, w) })
		if err == nil {
			s.note("%d bytes in %s", n, *file)
		}
		return err
	})
	return c
}

// pastOr reads a time that a duration counts back to; the zero time for "".
func pastOr(s *session, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	return timeOf(text, s.now(), -1)
}

// exportTo writes a file that appears only when it is whole.
func exportTo(path string, write func(io.Writer) (int64, error)) (int64, error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".certctl-*")
	if err != nil {
		return 0, fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone after the rename
	n, err := write(f)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return n, err
}
