package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"certctl/shared/client"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// storedContext is a server and how to prove to it who one is. The key is here or in a file of its own.
type storedContext struct {
	Name         string `yaml:"name" json:"name"`
	URL          string `yaml:"url" json:"url"`
	Key          string `yaml:"key,omitempty" json:"-"`
	KeyFile      string `yaml:"key_file,omitempty" json:"key_file"`
	CAFile       string `yaml:"ca_file,omitempty" json:"ca_file"`
	InsecureHTTP bool   `yaml:"insecure_http,omitempty" json:"insecure_http"`
	Current      bool   `yaml:"-" json:"current"`
}

// contexts is the configuration file: config.yaml in the XDG config folder.
type contexts struct {
	Current  string          `yaml:"current,omitempty"`
	Contexts []storedContext `yaml:"contexts"`

	path string
	open bool // others than the owner can read it
}

func (a *App) configPath() (string, error) {
	dir := a.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.Getenv("HOME")
		if home == "" {
			return "", errors.New("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for contexts: set CERTCTL_URL and CERTCTL_KEY_FILE instead")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "certctl", "config.yaml"), nil
}

// loadContexts reads the file; one that does not exist has no contexts.
func (a *App) loadContexts() (*contexts, error) {
	path, err := a.configPath()
	if err != nil {
		return &contexts{}, nil //nolint:nilerr // without a home there are no contexts, which is no fault until one is stored
	}
	c := &contexts{path: path}
	b, err := os.ReadFile(path) // #nosec G304 -- the user's own file
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the contexts: %w", err)
	}
	if err := yaml.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s is not YAML as certctl writes it; correct or delete it", path)
	}
	if info, err := os.Stat(path); err == nil {
		c.open = info.Mode().Perm()&0o077 != 0
	}
	return c, nil
}

// save replaces the file: whole or not at all, and readable by its owner only.
func (c *contexts) save() error {
	if c.path == "" {
		return errors.New("there is no place for contexts: set XDG_CONFIG_HOME or HOME")
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding the contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return fmt.Errorf("making the config folder: %w", err)
	}
	return writePrivate(c.path, b)
}

// writePrivate replaces a file atomically with one of mode 0600.
func writePrivate(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".certctl-*") // 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone after the rename
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

func (c *contexts) names() []string {
	out := make([]string, len(c.Contexts))
	for i, x := range c.Contexts {
		out[i] = x.Name
	}
	return out
}

func (c *contexts) find(name string) *storedContext {
	i := slices.IndexFunc(c.Contexts, func(x storedContext) bool { return x.Name == name })
	if i < 0 {
		return nil
	}
	return &c.Contexts[i]
}

func (c *contexts) mustFind(name string) (*storedContext, error) {
	if x := c.find(name); x != nil {
		return x, nil
	}
	return nil, fail(codeNotFound, "certctl context list", "there is no context of that name")
}

// connection is the server of one run, and where that was found.
type connection struct {
	url, key, caFile string
	insecureHTTP     bool
	from             string // for people: flags, environment, context NAME, this host
	warning          string
}

// Where a server on this host listens when nothing is configured.
const localURL = "http://127.0.0.1:8080"

// connection decides which server is asked with which key: flags before the environment, before the context, before a
// server of this host. A stored key goes only to the server that it was stored for.
func (a *App) connection() (connection, error) {
	stored, warning, err := a.chosenContext()
	if err != nil {
		return connection{}, err
	}
	c := connection{url: first(a.flags.url, a.Getenv("CERTCTL_URL")), caFile: first(a.flags.caFile, a.Getenv("CERTCTL_CA_FILE")), insecureHTTP: a.flags.insecureHTTP, from: "flags or environment", warning: warning}
	own := stored != nil && (c.url == "" || sameOrigin(c.url, stored.URL))
	if own {
		c.url, c.caFile = stored.URL, first(c.caFile, stored.CAFile)
		c.insecureHTTP = c.insecureHTTP || stored.InsecureHTTP
		c.from = "context " + stored.Name
	}
	if c.url == "" {
		c.url, c.from = localURL, "this host"
	}
	if c.key, err = a.givenKey(); err != nil {
		return c, err
	}
	if c.key == "" && own {
		if c.key, err = stored.secret(); err != nil {
			return c, err
		}
	}
	if c.key == "" && isLoopback(c.url) {
		c.key = a.adminKey()
	}
	return c, nil
}

// chosenContext is the context that was named, else the current one, else nil.
func (a *App) chosenContext() (*storedContext, string, error) {
	file, err := a.loadContexts()
	if err != nil {
		return nil, "", err
	}
	warning := ""
	if file.open {
		warning = "warning: others can read " + file.path + ", which may hold API keys: chmod 600 it"
	}
	named := first(a.flags.context, a.Getenv("CERTCTL_CONTEXT"))
	if named == "" {
		return file.find(file.Current), warning, nil
	}
	c, err := file.mustFind(named)
	return c, warning, err
}

func (c storedContext) secret() (string, error) {
	if c.Key != "" || c.KeyFile == "" {
		return c.Key, nil
	}
	return readKey(c.KeyFile)
}

// givenKey is the key of this call: a file by flag, the variable, or a file by variable.
func (a *App) givenKey() (string, error) {
	if a.flags.keyFile != "" {
		return readKey(a.flags.keyFile)
	}
	if k := strings.TrimSpace(a.Getenv("CERTCTL_KEY")); k != "" {
		return k, nil
	}
	if f := a.Getenv("CERTCTL_KEY_FILE"); f != "" {
		return readKey(f)
	}
	return "", nil
}

func readKey(path string) (string, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- named by the user
	if err != nil {
		return "", fail(codeUsage, "", "reading the key file: %s", err)
	}
	k := strings.TrimSpace(string(b))
	if k == "" {
		return "", usage("the key file %s is empty", path)
	}
	return k, nil
}

// adminKey is the key that serve's first start left in its data folder, "" if this user cannot read it.
func (a *App) adminKey() string {
	dir := a.Getenv("CERTCTL_DATA_DIR")
	switch data := a.Getenv("XDG_DATA_HOME"); {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/var/lib/certctl"
	case data != "":
		dir = filepath.Join(data, "certctl")
	case a.Getenv("HOME") != "":
		dir = filepath.Join(a.Getenv("HOME"), ".local", "share", "certctl")
	default:
		return ""
	}
	b, err := os.ReadFile(filepath.Join(dir, "admin.key")) // #nosec G304 -- a fixed name in the server's folder
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func first(s ...string) string {
	i := slices.IndexFunc(s, func(v string) bool { return v != "" })
	if i < 0 {
		return ""
	}
	return s[i]
}

func sameOrigin(a, b string) bool {
	x, err1 := url.Parse(a)
	y, err2 := url.Parse(b)
	return err1 == nil && err2 == nil && strings.EqualFold(x.Scheme, y.Scheme) && strings.EqualFold(x.Host, y.Host)
}

func isLoopback(at string) bool {
	u, err := url.Parse(at)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return strings.EqualFold(u.Hostname(), "localhost") || ip != nil && ip.IsLoopback()
}

// client makes the API client, which refuses to show a key to everybody on the way.
func (c connection) client(version string) (*client.Client, error) {
	if c.key != "" && strings.HasPrefix(strings.ToLower(c.url), "http://") && !isLoopback(c.url) && !c.insecureHTTP {
		return nil, fail(codeRefused, "an https URL; or --insecure-http, if the way there is trusted", "the API key is not sent over plain HTTP to another host")
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 4
	if c.caFile != "" {
		pem, err := os.ReadFile(c.caFile) // #nosec G304 -- named by the user
		if err != nil {
			return nil, usage("reading the CA file: %s", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, usage("the CA file %s holds no PEM certificate", c.caFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	cl, err := client.New(client.Config{URL: c.url, Key: c.key, Transport: t, UserAgent: "certctl/" + version})
	if err != nil {
		return nil, usage("%s", err)
	}
	return cl, nil
}

func environmentTopic() *cobra.Command {
	return &cobra.Command{Use: "environment", Short: "Variables that the client commands read", Long: `The client commands read these variables. A flag of the same meaning wins; both win over the context.

  CERTCTL_URL       the server, e.g. https://certctl.example.com
  CERTCTL_KEY       the API key
  CERTCTL_KEY_FILE  a file that holds the API key
  CERTCTL_CA_FILE   PEM certificates that the server's certificate is checked against, instead of the system's
  CERTCTL_CONTEXT   the context to use instead of the current one
  CERTCTL_DATA_DIR  data folder of a certctl serve on this host, whose admin.key is used when nothing else is given
  XDG_CONFIG_HOME   contexts are in certctl/config.yaml below it (default ~/.config)
  NO_COLOR          anything: no colour

Without any of them, and without a context, http://127.0.0.1:8080 is asked with the admin.key of this host's data folder.
A key of a context is sent to that context's server only.`}
}
