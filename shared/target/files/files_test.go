package files_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/target"
	"certctl/shared/target/files"
	"certctl/shared/target/targettest"
	"certctl/shared/wire"
)

var subject = targettest.Subject{
	Kind:   "files",
	Driver: files.Open,
	Config: func(dir string, chain bool, validate, reload string) map[string]any {
		hook := reload
		if validate != "" {
			hook = "{ " + validate + "; } && { " + reload + "; }"
		}
		c := map[string]any{"cert_path": filepath.Join(dir, targettest.CertFile), "key_path": filepath.Join(dir, targettest.KeyFile), "hook": hook}
		if validate == "true" && reload == "true" {
			c["hook"] = "true"
		}
		if chain {
			c["chain_path"] = filepath.Join(dir, targettest.ChainFile)
		}
		return c
	},
	Serve: serve,
}

func TestMain(m *testing.M) { targettest.Main(m, subject) }

func TestFilesConformance(t *testing.T) { targettest.Run(t, subject) }

// serve is a TLS server of the test that serves copies of the files; its reload is to copy them.
func serve(t *testing.T, dir string) targettest.Server {
	t.Helper()
	cert, key := filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem")
	reload := fmt.Sprintf("cp %s/%s %s && cp %s/%s %s", dir, targettest.CertFile, cert, dir, targettest.KeyFile, key)
	if err := new(target.Host).Run(t.Context(), reload); err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: log.New(io.Discard, "", 0)} // #nosec G112 -- a test's server
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return targettest.Server{Address: listener.Addr().String(), Reload: reload}
}

func TestLayouts(t *testing.T) {
	t.Parallel()
	bundle := targettest.NewCA(t).Issue(t, "a.example.com")
	for name, c := range map[string]struct {
		extra       string
		cert, chain []byte
	}{
		"whole chain by default":       {``, bundle.FullChainPEM(), nil},
		"leaf alone beside a chain":    {`,"chain_path":"DIR/chain.pem"`, bundle.LeafPEM(), bundle.IntermediatesPEM()},
		"whole chain beside a chain":   {`,"chain_path":"DIR/chain.pem","fullchain":true`, bundle.FullChainPEM(), bundle.IntermediatesPEM()},
		"leaf alone because told":      {`,"fullchain":false`, bundle.LeafPEM(), nil},
		"null means unset":             {`,"fullchain":null,"hook":null`, bundle.FullChainPEM(), nil},
		"format pem, modes and owners": {fmt.Sprintf(`,"format":"pem","cert_mode":"0604","key_mode":"0640","owner":"%d:%d"`, os.Geteuid(), os.Getegid()), bundle.FullChainPEM(), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			config := fmt.Sprintf(`{"cert_path":"DIR/cert.pem","key_path":"DIR/key.pem"%s}`, c.extra)
			config = string(bytes.ReplaceAll([]byte(config), []byte("DIR"), []byte(dir)))
			e := &target.Engine{Dir: t.TempDir(), Drivers: target.Registry{"files": files.Open}}
			if _, err := e.Deploy(t.Context(), wire.Target{ID: id.New[id.Target](), Type: "files", Config: json.RawMessage(config)}, bundle); err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string][]byte{"cert.pem": c.cert, "chain.pem": c.chain} {
				if got, _ := os.ReadFile(filepath.Join(dir, file)); !bytes.Equal(got, want) { // #nosec G304 -- the test's own
					t.Errorf("%s holds %d bytes, want %d", file, len(got), len(want))
				}
			}
			if name == "format pem, modes and owners" {
				for file, mode := range map[string]os.FileMode{"cert.pem": 0o604, "key.pem": 0o640} {
					if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode() != mode {
						t.Errorf("%s: mode %v, %v", file, info.Mode(), err)
					}
				}
			}
		})
	}
}

func TestBadConfigsNameTheField(t *testing.T) {
	t.Parallel()
	for field, extra := range map[string]string{
		"config.format": `"format":"der"`, "config.cert_mode": `"cert_mode":"rw"`, "config.key_mode": `"key_mode":"0644"`,
		"config.owner": `"owner":"a b"`, "config.chain_path": `"chain_path":"x"`, "config.hook": `"hook":[]`, "config.mode": `"mode":"0600"`,
	} {
		_, err := files.Open(json.RawMessage(`{"cert_path":"/a/c","key_path":"/a/k",` + extra + `}`))
		if f := fault.As(err); f == nil || len(f.Fields) != 1 || f.Fields[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
