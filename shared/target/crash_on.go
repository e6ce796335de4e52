//go:build crashtest

package target

import (
	"os"
	"syscall"
)

// CrashHook kills the process with SIGKILL at the point that CERTCTL_CRASH_AT names, e.g. "swap:before". Only builds with
// the tag crashtest have it.
func CrashHook() func(point string, w Moment) {
	at := os.Getenv("CERTCTL_CRASH_AT")
	return func(point string, w Moment) {
		if at == point+":"+string(w) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}
