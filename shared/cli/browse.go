package cli

import (
	"context"
	"os/exec"
	"runtime"
)

// browse hands an address to the desktop.
func browse(ctx context.Context, url string) error {
	name, args := "xdg-open", []string{url}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", url}
	}
	return exec.CommandContext(ctx, name, args...).Start() // #nosec G204 -- a fixed program; the address is the configured server
}
