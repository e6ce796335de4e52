package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"certctl/shared/cli"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

// program is the root that the commands hang under in these tests.
func program(a *cli.App) *cobra.Command {
	root := &cobra.Command{Use: "certctl", SilenceErrors: true, SilenceUsage: true}
	a.Attach(root)
	return root
}

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"certctl": func() { os.Exit(cli.Main(context.Background(), program(&cli.App{Version: "test"}))) }})
}

// TestScripts runs the sessions in testdata/script against the stand-in, or against the server that CERTCTL_URL names with
// CERTCTL_KEY (an admin) and CERTCTL_BOB (an operator of another principal, whose key the admin did not create). $RUN makes
// names unique there.
func TestScripts(t *testing.T) {
	t.Parallel()
	given := os.Getenv("CERTCTL_URL")
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: func(e *testscript.Env) error {
		url, key, bob := given, os.Getenv("CERTCTL_KEY"), os.Getenv("CERTCTL_BOB")
		if given == "" {
			url, key, bob = newHouse().serve(t).URL, adminKey, bobKey
		}
		e.Setenv("CERTCTL_URL", url)
		e.Setenv("CERTCTL_KEY", key)
		e.Setenv("BOB", bob)
		e.Setenv("RUN", strings.ToLower(filepath.Base(e.WorkDir))+time.Now().Format("150405"))
		e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
		return nil
	}, Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": exitCode, "keep": keep, "mode": mode}})
}

// exitCode is the script command "code N command…": the command must end with exactly that code.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s: exit code %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// keep is the script command "keep NAME": the last output, without the line's end, becomes a variable.
func keep(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// mode is the script command "mode 0600 FILE".
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// run runs one command line in this process.
func run(t *testing.T, env map[string]string, in string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	a := &cli.App{Version: "test", Getenv: func(name string) string { return env[name] }}
	root := program(a)
	root.SetOut(&o)
	root.SetErr(&e)
	root.SetIn(strings.NewReader(in))
	root.SetArgs(args)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code = cli.Main(ctx, root)
	return code, o.String(), e.String()
}
