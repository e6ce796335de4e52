package boot

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net/url"
	"slices"
	"strings"

	"certctl/shared/boot/config"
	"certctl/shared/db"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Common is what every server program reads. Programs embed it in their own configuration struct.
type Common struct {
	// DatabaseURL is the Postgres to use. default_query_exec_mode may be set in it for a pooler.
	DatabaseURL secret.Text `env:"CERTCTL_DATABASE_URL" secret:"true" set:"postgres://user:password@host:5432/database"`
	// MasterKey seals every secret in the database where no KMS does.
	MasterKey secret.Text `env:"CERTCTL_MASTER_KEY" secret:"true" set:"32 random bytes in base64: openssl rand -base64 32"`
	// PublicURL is the base of API links, without a trailing slash.
	PublicURL string `env:"CERTCTL_PUBLIC_URL" set:"the API's address as clients see it, such as https://certctl.corp.internal"`
	// PKIURL is the base of AIA, CDP and OCSP addresses in certificates: PublicURL unless set.
	PKIURL string `env:"CERTCTL_PKI_URL" set:"a plain http address that relying parties reach, such as http://pki.corp.internal"`
	// AllowPrivate are the purposes for which loopback and private addresses may be dialed.
	AllowPrivate []string `env:"CERTCTL_ALLOW_PRIVATE" set:"a list of issuers, webhooks, scan, verify, separated by commas"`
	// PoolSize bounds the connections of this process. 0 is 2 on Lambda, where an instance serves one event at a time, and
	// pgx's default elsewhere.
	PoolSize int32 `env:"CERTCTL_POOL_SIZE" set:"0 to 1000 connections of this process"`
	// TickToken is the bearer token of whoever triggers ticks over HTTP.
	TickToken secret.Text `env:"CERTCTL_TICK_TOKEN" secret:"true" set:"a random token: openssl rand -hex 32"`
	// Once makes a tick program run once and exit, as --once does.
	Once bool `env:"CERTCTL_ONCE"`
	// LogLevel is the least level that is written.
	LogLevel slog.Level `env:"CERTCTL_LOG_LEVEL" envDefault:"info" set:"debug, info, warn or error"`
	// LogFormat is text or json; auto is text on a terminal and json elsewhere.
	LogFormat string `env:"CERTCTL_LOG_FORMAT" envDefault:"auto" set:"auto, text or json"`

	unknown []string
}

// privatePurposes are what AllowPrivate may name (SPEC R10).
var privatePurposes = []string{"issuers", "webhooks", "scan", "verify"}

// Complete derives PKIURL and checks what tags cannot say.
func (c *Common) Complete() []config.Problem {
	var out []config.Problem
	wrong := func(variable, detail string) { out = append(out, config.Problem{Variable: variable, Detail: detail}) }
	c.PublicURL, c.PKIURL = strings.TrimRight(c.PublicURL, "/"), strings.TrimRight(c.PKIURL, "/")
	if c.PublicURL != "" && !isBase(c.PublicURL) {
		wrong("CERTCTL_PUBLIC_URL", "is not an http or https address without query: set the API's address as clients see it")
	}
	if c.PKIURL != "" && !isBase(c.PKIURL) {
		wrong("CERTCTL_PKI_URL", "is not an http or https address without query: set a plain http address that relying parties reach")
	}
	if c.PKIURL == "" {
		c.PKIURL = c.PublicURL
	}
	if key, err := base64.StdEncoding.DecodeString(c.MasterKey.Reveal()); !c.MasterKey.IsZero() && (err != nil || len(key) != 32) {
		wrong("CERTCTL_MASTER_KEY", "is not 32 bytes in base64: make one with openssl rand -base64 32, or restore the one that sealed this database")
	}
	for i, p := range c.AllowPrivate {
		c.AllowPrivate[i] = strings.TrimSpace(p)
		if !slices.Contains(privatePurposes, c.AllowPrivate[i]) {
			wrong("CERTCTL_ALLOW_PRIVATE", "names an unknown purpose: set a list of "+strings.Join(privatePurposes, ", "))
			break
		}
	}
	if c.PoolSize < 0 || c.PoolSize > 1000 {
		wrong("CERTCTL_POOL_SIZE", "is out of range: set 0 to 1000")
	}
	if !c.TickToken.IsZero() && len(c.TickToken.Reveal()) < 16 {
		wrong("CERTCTL_TICK_TOKEN", "is shorter than 16 characters: make one with openssl rand -hex 32")
	}
	if !slices.Contains([]string{"auto", "text", "json"}, c.LogFormat) {
		wrong("CERTCTL_LOG_FORMAT", "is not one of auto, text, json")
	}
	return out
}

func isBase(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.RawQuery == "" && u.Fragment == "" && u.User == nil
}

// Pool makes the program's pool; it opens no connection yet.
func (c *Common) Pool(ctx context.Context) (*pgxpool.Pool, error) {
	size := c.PoolSize
	if size == 0 && onLambda() {
		size = 2
	}
	return db.Open(ctx, db.Config{URL: c.DatabaseURL.Reveal(), MaxConns: size})
}

func (c *Common) noteUnknown(names []string) { c.unknown = names }

// Load reads T from environ (os.Environ()). T embeds Common, or is a struct with tags as package config describes. The
// variables in need must be set. Every fault is in the one error. CERTCTL_ variables that T does not read are no fault;
// Logger warns of them.
func Load[T any](environ []string, need ...string) (T, error) {
	t, err := config.Load[T](environ, need...)
	if err != nil {
		return t, err
	}
	if c, ok := any(&t).(interface{ noteUnknown([]string) }); ok {
		c.noteUnknown(config.Unknown[T](environ))
	}
	return t, nil
}
