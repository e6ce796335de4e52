package pglocal

import (
	"os"
	"path/filepath"
	"strings"
)

// Running answers the URL of the server that another process runs on a folder, for tools beside it. ok is false when none
// runs there or this account may not read its password.
func Running(dir string) (url string, ok bool) {
	homes, err := filepath.Glob(filepath.Join(dir, "pg*", "data", "postmaster.pid"))
	if err != nil {
		return "", false
	}
	for _, pid := range homes {
		home := filepath.Dir(filepath.Dir(pid))
		status, err := os.ReadFile(pid) // #nosec G304 -- below the data folder
		if err != nil || !strings.Contains(string(status), "\nready") {
			continue
		}
		password, err := os.ReadFile(filepath.Join(home, "password")) // #nosec G304 -- below the data folder
		if err != nil {
			continue
		}
		abs, err := filepath.Abs(home)
		if err != nil {
			continue
		}
		return socketURL(socketFolder(abs), string(password)), true
	}
	return "", false
}
