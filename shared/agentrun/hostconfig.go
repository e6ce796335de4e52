package agentrun

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"certctl/shared/target"
)

// HostConfig reads the host's word on deployments (SPEC AGT-4). commands is any (or ""), listed or none; listed reads
// commandsFile: one command a line, compared as a whole, with # before comments. paths are absolute roots with colons between.
func HostConfig(commands, commandsFile, paths string) (target.Host, error) {
	h := target.Host{Commands: target.Commands(commands)}
	switch h.Commands {
	case "":
		h.Commands = target.CommandsAny
	case target.CommandsAny, target.CommandsNone:
	case target.CommandsListed:
		if commandsFile == "" {
			return h, fmt.Errorf("CERTCTL_AGENT_COMMANDS=listed needs CERTCTL_AGENT_COMMANDS_FILE, a file with one command a line")
		}
		listed, err := readCommands(commandsFile)
		if err != nil {
			return h, err
		}
		h.Listed = listed
	default:
		return h, fmt.Errorf("CERTCTL_AGENT_COMMANDS must be any, listed or none")
	}
	for _, root := range strings.Split(paths, ":") {
		if root == "" {
			continue
		}
		if !filepath.IsAbs(root) {
			return h, fmt.Errorf("CERTCTL_AGENT_PATHS must be absolute folders with colons between them")
		}
		h.Paths = append(h.Paths, filepath.Clean(root))
	}
	return h, nil
}

// readCommands refuses a list that others can write: it would be no word of the host's.
func readCommands(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading CERTCTL_AGENT_COMMANDS_FILE: %w", err)
	}
	if info.Mode()&0o022 != 0 {
		return nil, fmt.Errorf("CERTCTL_AGENT_COMMANDS_FILE %s is writable by others: chmod 644 it", path)
	}
	text, err := os.ReadFile(path) // #nosec G304 -- named by the host's administrator
	if err != nil {
		return nil, fmt.Errorf("reading CERTCTL_AGENT_COMMANDS_FILE: %w", err)
	}
	var commands []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commands = append(commands, line)
		}
	}
	return commands, nil
}
