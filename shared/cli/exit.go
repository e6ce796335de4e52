package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

// The exit codes.
const (
	codeOK          = 0
	codeFailure     = 1
	codeUsage       = 2
	codeNotFound    = 3
	codeRefused     = 4
	codePending     = 5
	codeConflict    = 6
	codeUnavailable = 7
	codeTimeout     = 8
	codeJobFailed   = 9
)

const exitCodes = `Every command ends with one of these codes:

  0  ok
  1  failure: anything that is none of the others
  2  usage: the command line is not valid, or the server did not accept a value in it (400)
  3  not found: what was named does not exist (404)
  4  refused: no credential, one that is not accepted, or one that does not permit this (401, 403)
  5  pending: the work waits for another person's approval
  6  conflict: the state or a unique name forbids it (409), e.g. a certificate with an open job
  7  unavailable: the server or something it needs is away; the same command may succeed later
  8  timed out: --timeout was over before the end was seen; the work itself goes on
  9  the job ended, and not well: it failed or was cancelled

A command over several things goes through all of them and ends with the code of the first that failed.
Results are on stdout; progress, hints and errors are on stderr.`

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodes}
}

// failure is an error with its exit code and, where there is one, the way out.
type failure struct {
	code int
	text string
	hint string
}

func (f *failure) Error() string { return f.text }

func usage(format string, args ...any) error {
	return &failure{code: codeUsage, text: fmt.Sprintf(format, args...)}
}

func fail(code int, hint, format string, args ...any) error {
	return &failure{code: code, text: fmt.Sprintf(format, args...), hint: hint}
}

// code is the exit code of an error.
func code(err error) int {
	var f *failure
	var p *client.Problem
	var away *client.Unreachable
	switch {
	case err == nil:
		return codeOK
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, context.DeadlineExceeded):
		return codeTimeout
	case errors.As(err, &p):
		return problemCode(p)
	case errors.As(err, &away):
		return codeUnavailable
	}
	return codeFailure
}

func problemCode(p *client.Problem) int {
	switch p.Status {
	case http.StatusBadRequest:
		return codeUsage
	case http.StatusNotFound:
		return codeNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return codeRefused
	case http.StatusConflict:
		return codeConflict
	}
	if p.Retryable {
		return codeUnavailable
	}
	return codeFailure
}

// report prints an error with what helps: the fields that are wrong, the request's id, and the way out.
func report(w io.Writer, cmd *cobra.Command, err error) {
	var f *failure
	var p *client.Problem
	switch {
	case errors.As(err, &f):
		fmt.Fprintf(w, "certctl: %s\n", clean(f.text))
		way(w, f.hint)
		if f.code == codeUsage && cmd != nil {
			way(w, cmd.CommandPath()+" --help")
		}
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(w, "certctl: interrupted")
	case errors.Is(err, context.DeadlineExceeded):
		fmt.Fprintln(w, "certctl: the time given by --timeout is over; what was begun on the server goes on")
	case errors.As(err, &p):
		reportProblem(w, p)
	default:
		fmt.Fprintf(w, "certctl: %s\n", clean(err.Error()))
		var away *client.Unreachable
		if errors.As(err, &away) {
			way(w, "is the server running? CERTCTL_URL, --url or “certctl context list” say which one is asked")
		}
	}
}

func reportProblem(w io.Writer, p *client.Problem) {
	detail := p.Detail
	if detail == "" {
		detail = p.Title
	}
	fmt.Fprintf(w, "certctl: %s\n", clean(detail))
	for _, f := range p.Fields {
		fmt.Fprintf(w, "  %s: %s\n", clean(f.Field), clean(f.Detail))
	}
	if p.RequestID != "" {
		fmt.Fprintf(w, "  request: %s\n", clean(p.RequestID))
	}
	way(w, wayOut(p))
}

func way(w io.Writer, hint string) {
	if hint != "" {
		fmt.Fprintf(w, "  try: %s\n", hint)
	}
}

// wayOut is the command that helps after a problem, where one is known.
func wayOut(p *client.Problem) string {
	job := p.Member("open_job_id")
	switch {
	case job != "":
		return "certctl job wait " + job + ", or certctl job cancel " + job
	case p.Status == http.StatusUnauthorized:
		return "certctl login, or set CERTCTL_KEY_FILE"
	case p.Status == http.StatusForbidden:
		return "certctl whoami shows what this key may do"
	case p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable:
		return "the same command again in a moment"
	}
	return ""
}

// clean keeps text of the server from driving the terminal: control characters are shown as a question mark.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}

// each runs f over several things: all of them, whatever fails. Failures but the last are printed; the first decides the code.
func (s *session) each(refs []string, f func(ref string) error) error {
	var first error
	for _, ref := range refs {
		err := f(ref)
		if err == nil {
			continue
		}
		if len(refs) == 1 || s.ctx.Err() != nil {
			return err
		}
		report(s.err, nil, fmt.Errorf("%w", err))
		if first == nil {
			first = err
		}
	}
	if first != nil {
		return fail(code(first), "", "not all of %d succeeded", len(refs))
	}
	return nil
}
