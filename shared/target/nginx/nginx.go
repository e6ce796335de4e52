// Package nginx deploys to NGINX: files that its ssl_certificate and ssl_certificate_key name, a test of the configuration,
// and a reload.
//
// It knows the config and the layout of the files; the engine in target does the rest. The surprising rule: `nginx -t` reads
// the real paths, so it runs after the swap, and a refusal rolls the swap back before the running server has seen it.
package nginx

import (
	"encoding/json"
	"strings"

	"certctl/shared/fault"
	"certctl/shared/target"
)

// Config is a target's config.
type Config struct {
	CertPath        string `json:"cert_path"`        // leaf and intermediates
	KeyPath         string `json:"key_path"`         // PKCS#8 PEM
	ChainPath       string `json:"chain_path"`       // optional: the intermediates, e.g. for ssl_trusted_certificate
	ValidateCommand string `json:"validate_command"` // optional, e.g. "nginx -t"
	ReloadCommand   string `json:"reload_command"`   // e.g. "nginx -s reload"
}

// Open is the driver.
func Open(config json.RawMessage) (target.Target, error) {
	var c Config
	if err := target.Decode(config, &c); err != nil {
		return nil, err
	}
	if err := target.CleanPath("cert_path", c.CertPath); err != nil {
		return nil, err
	}
	if err := target.CleanPath("key_path", c.KeyPath); err != nil {
		return nil, err
	}
	if c.ChainPath != "" {
		if err := target.CleanPath("chain_path", c.ChainPath); err != nil {
			return nil, err
		}
	}
	if strings.TrimSpace(c.ReloadCommand) == "" {
		return nil, fault.BadField("config.reload_command", "is required, for example: nginx -s reload")
	}
	return target.Files{
		Layout:   c.layout,
		Validate: target.Command{Field: "validate_command", Text: c.ValidateCommand},
		Reload:   target.Command{Field: "reload_command", Text: c.ReloadCommand},
	}, nil
}

func (c Config) layout(b *target.Bundle) ([]target.File, error) {
	key, err := b.KeyPEM()
	if err != nil {
		return nil, err
	}
	var files []target.File
	// nginx serves what stands in ssl_certificate and has no directive for a chain apart, so the chain is always there;
	// chain_path gets the intermediates once more, for ssl_trusted_certificate.
	if c.ChainPath != "" {
		files = append(files, target.File{Role: target.RoleChain, Field: "chain_path", Path: c.ChainPath, Content: b.IntermediatesPEM()})
	}
	return append(files,
		target.File{Role: target.RoleCert, Field: "cert_path", Path: c.CertPath, Content: b.FullChainPEM()},
		target.File{Role: target.RoleKey, Field: "key_path", Path: c.KeyPath, Content: key},
	), nil
}
