// Package files deploys to plain files and runs a hook after a change: the driver for every server that has none of its own.
//
// It knows the config and the layout of the files; the engine in target does the rest. A hook that fails rolls the files back
// and runs once more, so that the server reads the previous version again.
package files

import (
	"encoding/json"
	"io/fs"
	"regexp"
	"strconv"

	"certctl/shared/fault"
	"certctl/shared/target"
)

// Config is a target's config.
type Config struct {
	CertPath  string `json:"cert_path"`  // leaf and intermediates; the leaf alone if ChainPath is set, unless FullChain says otherwise
	KeyPath   string `json:"key_path"`   // PKCS#8 PEM
	ChainPath string `json:"chain_path"` // optional: the intermediates
	FullChain *bool  `json:"fullchain"`  // optional: whether CertPath holds the intermediates too
	Format    string `json:"format"`     // pem, the default
	CertMode  string `json:"cert_mode"`  // optional octal mode of certificate and chain, e.g. "0644"; unset keeps the file's
	KeyMode   string `json:"key_mode"`   // optional octal mode of the key, e.g. "0640"
	Owner     string `json:"owner"`      // optional "user", "user:group" or ":group" of all files
	Hook      string `json:"hook"`       // optional command after a change
}

// Open is the driver.
func Open(config json.RawMessage) (target.Target, error) {
	var c Config
	if err := target.Decode(config, &c); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return target.Files{Layout: c.layout, Reload: target.Command{Field: "hook", Text: c.Hook}}, nil
}

var owners = regexp.MustCompile(`^([A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?|:[A-Za-z0-9_.-]+)$`)

func (c Config) check() error {
	for _, p := range []struct{ field, path string }{{"cert_path", c.CertPath}, {"key_path", c.KeyPath}, {"chain_path", c.ChainPath}} {
		if p.field == "chain_path" && p.path == "" {
			continue
		}
		if err := target.CleanPath(p.field, p.path); err != nil {
			return err
		}
	}
	if c.Format != "" && c.Format != "pem" {
		return fault.BadField("config.format", "must be pem")
	}
	if _, ok := mode(c.CertMode, 0o777); !ok {
		return fault.BadField("config.cert_mode", "must be an octal file mode such as 0644")
	}
	if _, ok := mode(c.KeyMode, 0o770); !ok {
		return fault.BadField("config.key_mode", "must be an octal file mode that gives others nothing, such as 0640")
	}
	if c.Owner != "" && !owners.MatchString(c.Owner) {
		return fault.BadField("config.owner", "must be user, user:group or :group")
	}
	return nil
}

// mode reads an octal mode within the bits of allowed; "" is 0, which keeps the file's own.
func mode(text string, allowed uint64) (fs.FileMode, bool) {
	if text == "" {
		return 0, true
	}
	m, err := strconv.ParseUint(text, 8, 16)
	if err != nil || m == 0 || m&^allowed != 0 {
		return 0, false
	}
	return fs.FileMode(m), true
}

func (c Config) layout(b *target.Bundle) ([]target.File, error) {
	key, err := b.KeyPEM()
	if err != nil {
		return nil, err
	}
	certMode, _ := mode(c.CertMode, 0o777)
	keyMode, _ := mode(c.KeyMode, 0o770)
	full := c.ChainPath == ""
	if c.FullChain != nil {
		full = *c.FullChain
	}
	cert := b.LeafPEM()
	if full {
		cert = b.FullChainPEM()
	}
	var files []target.File
	if c.ChainPath != "" {
		files = append(files, target.File{Role: target.RoleChain, Field: "chain_path", Path: c.ChainPath, Content: b.IntermediatesPEM(), Mode: certMode, Owner: c.Owner})
	}
	return append(files,
		target.File{Role: target.RoleCert, Field: "cert_path", Path: c.CertPath, Content: cert, Mode: certMode, Owner: c.Owner},
		target.File{Role: target.RoleKey, Field: "key_path", Path: c.KeyPath, Content: key, Mode: keyMode, Owner: c.Owner},
	), nil
}
