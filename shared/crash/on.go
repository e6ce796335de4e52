//go:build crashtest

package crash

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var passed atomic.Int64 // how often the place of CERTCTL_CRASH_AT was passed

// At marks a place. It panics on a step that is not in Steps, traces where it is told to, and kills the process with SIGKILL
// at the place that CERTCTL_CRASH_AT names.
func At(s Step, m Moment) {
	if !slices.ContainsFunc(Steps, func(e Entry) bool { return e.Step == s }) {
		panic("crash: the step " + string(s) + " is not in the registry")
	}
	here := string(s) + ":" + string(m)
	trace(here)
	at, count, _ := strings.Cut(os.Getenv(Variable), "#")
	if at != here {
		return
	}
	nth := int64(1)
	if count != "" {
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			panic("crash: " + Variable + " must end in a number after #")
		}
		nth = n
	}
	if passed.Add(1) == nth {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// trace appends a whole line in one write, which O_APPEND keeps apart from other processes' lines.
func trace(line string) {
	path := os.Getenv(TraceVariable)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600) // #nosec G304 G703 -- only in crashtest builds, where the test names the file
	if err != nil {
		panic(fmt.Sprintf("crash: the trace cannot be written: %v", err))
	}
	_, err = f.WriteString(line + "\n")
	if cerr := f.Close(); err != nil || cerr != nil {
		panic(fmt.Sprintf("crash: the trace cannot be written: %v %v", err, cerr))
	}
}
