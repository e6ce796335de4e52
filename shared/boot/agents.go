package boot

import (
	"time"

	"certctl/shared/dial"
)

// Agents is what programs read that answer agents.
type Agents struct {
	// PollInterval is promised to agents while nothing is open for them.
	PollInterval time.Duration `env:"CERTCTL_POLL_INTERVAL" envDefault:"300s" set:"a duration such as 300s"`
}

// PrivatePurposes are the purposes of CERTCTL_ALLOW_PRIVATE for a dial.Policy.
func (c *Common) PrivatePurposes() map[dial.Purpose]bool {
	out := map[dial.Purpose]bool{}
	for _, p := range c.AllowPrivate {
		out[dial.Purpose(p)] = true
	}
	return out
}

// OnLambda reports whether the process runs as a Lambda function.
func OnLambda() bool { return onLambda() }
