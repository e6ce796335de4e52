package agentrun

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"certctl/shared/id"
	"certctl/shared/target"
)

// Check is one line of the doctor's table.
type Check struct {
	Name   string
	OK     bool
	Detail string // what was found; if not OK, with the way out
}

// clockAlarm is the clock difference that the doctor complains about.
const clockAlarm = 2 * time.Minute

// Doctor looks at the host's side of everything an agent needs. It changes nothing, claims no work, and works beside a
// running agent.
func Doctor(ctx context.Context, cfg Config) []Check {
	checks := []Check{checkFolder(cfg.Dir)}
	st := &store{dir: cfg.Dir, readOnly: true}
	checks = append(checks, checkIdentity(st, cfg))
	checks = append(checks, checkServer(ctx, cfg, st)...)
	checks = append(checks, checkPaths(cfg.Host)...)
	return append(checks, checkCommands(cfg.Host), Check{"target types", true, strings.Join(cfg.Drivers.Kinds(), ", ")})
}

func checkFolder(dir string) Check {
	c := Check{Name: "agent folder"}
	info, err := os.Stat(dir)
	switch {
	case dir == "":
		c.Detail = "is not set: give CERTCTL_AGENT_DIR or --agent-dir"
	case err != nil:
		c.Detail = fmt.Sprintf("%s cannot be looked at: it is made at the first run, by a user who may", dir)
	case !info.IsDir():
		c.Detail = dir + " is not a folder"
	case info.Mode()&0o022 != 0:
		c.Detail = fmt.Sprintf("%s has mode %04o and is writable by others: chmod 700 it", dir, info.Mode().Perm())
	case syscall.Access(dir, 7) != nil:
		c.Detail = dir + " is not readable and writable for this user"
	default:
		c.OK, c.Detail = true, fmt.Sprintf("%s, mode %04o", dir, info.Mode().Perm())
	}
	return c
}

func checkIdentity(st *store, cfg Config) Check {
	c := Check{Name: "enrolled"}
	var who identity
	found, err := st.getJSON(&who, agentFile)
	secret, err2 := os.Stat(st.path(credentialFile))
	switch {
	case err != nil:
		c.Detail = err.Error()
	case !found || err2 != nil:
		_, err := TokenPin(cfg.Token)
		c.OK, c.Detail = err == nil, "no, but there is a token for the first run"
		if cfg.Token == "" {
			c.Detail = ErrNoToken.Error()
		} else if err != nil {
			c.Detail = err.Error()
		}
	case secret.Mode().Perm()&0o077 != 0:
		c.Detail = fmt.Sprintf("the credential has mode %04o: chmod 600 it", secret.Mode().Perm())
	default:
		c.OK, c.Detail = true, fmt.Sprintf("as %s (%s)", who.Name, who.AgentID)
	}
	return c
}

// checkServer asks for the server's health, compares clocks by its Date, and tries the credential on a certificate that does
// not exist: asking for work would claim it.
func checkServer(ctx context.Context, cfg Config, st *store) []Check {
	reach := Check{Name: "server"}
	cl, err := newClient(cfg, st)
	if err != nil {
		reach.Detail = err.Error()
		return []Check{reach}
	}
	clock, err := compareClocks(ctx, cl)
	if err != nil {
		reach.Detail = err.Error()
		return []Check{reach}
	}
	reach.OK, reach.Detail = true, cl.base+" answers"
	return append([]Check{reach, clock}, checkCredential(ctx, cl, st)...)
}

func compareClocks(ctx context.Context, cl *client) (Check, error) {
	c := Check{Name: "clock"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cl.base+"/health", nil)
	if err != nil {
		return c, err
	}
	start := time.Now()
	resp, err := cl.http.Do(req)
	if err != nil {
		return c, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c, fmt.Errorf("%s/health answers %d: is this the server's URL?", cl.base, resp.StatusCode)
	}
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		c.OK, c.Detail = true, "the server names no time"
		return c, nil
	}
	off := start.Add(time.Since(start) / 2).Sub(at).Round(time.Second)
	c.OK, c.Detail = off.Abs() <= clockAlarm, fmt.Sprintf("%s from the server's", off)
	if !c.OK {
		c.Detail += ": certificates may look as if they were not valid yet; start a time service"
	}
	return c, nil
}

func checkCredential(ctx context.Context, cl *client, st *store) []Check {
	var who identity
	secret, err := st.get(credentialFile)
	if found, err2 := st.getJSON(&who, agentFile); err != nil || err2 != nil || !found || secret == nil {
		return nil
	}
	cl.agent, cl.credential = who.AgentID, strings.TrimSpace(string(secret))
	c := Check{Name: "credential"}
	path := "/certificates/" + id.New[id.Certificate]().String() + "?version_id=" + id.New[id.Version]().String()
	err = cl.agentCall(ctx, http.MethodGet, path, nil, nil)
	var status *StatusError
	switch {
	case hasStatus(err, http.StatusNotFound) || err == nil:
		c.OK, c.Detail = true, "is accepted"
	case hasStatus(err, http.StatusUnauthorized, http.StatusForbidden):
		c.Detail = refused(err).Error()
	case errors.As(err, &status):
		c.Detail = fmt.Sprintf("could not be tried: %v", err)
	default:
		c.Detail = err.Error()
	}
	return []Check{c}
}

func checkPaths(h target.Host) []Check {
	if len(h.Paths) == 0 {
		return []Check{{"paths", true, "any (CERTCTL_AGENT_PATHS is not set)"}}
	}
	var checks []Check
	for _, root := range h.Paths {
		c := Check{Name: "path " + root}
		info, err := os.Stat(root)
		switch {
		case err != nil:
			c.Detail = "does not exist or cannot be looked at"
		case !info.IsDir():
			c.Detail = "is not a folder"
		case syscall.Access(root, 7) != nil:
			c.Detail = "is not writable for this user"
		default:
			c.OK, c.Detail = true, "writable"
		}
		checks = append(checks, c)
	}
	return checks
}

func checkCommands(h target.Host) Check {
	switch h.Commands {
	case target.CommandsNone:
		return Check{"commands", true, "none: targets with commands are refused"}
	case target.CommandsListed:
		return Check{"commands", len(h.Listed) > 0, fmt.Sprintf("%d listed in CERTCTL_AGENT_COMMANDS_FILE", len(h.Listed))}
	}
	return Check{"commands", true, "any"}
}
