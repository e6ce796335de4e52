package agent

import (
	"testing"

	"certctl/shared/auth"
	"certctl/shared/id"
)

func FuzzAgentSecretsAreTakenApartOrRefused(f *testing.F) {
	text, _ := auth.NewSecret()
	f.Add(credential(id.New[id.Agent](), text))
	f.Add(TokenPrefix + text + "." + text)
	f.Add(TokenPrefix)
	f.Add("certctl_agent_01h455vb4pex5vsknk084sn02q_")
	f.Fuzz(func(t *testing.T, s string) {
		if a, secret, ok := SplitCredential(s); ok && (credential(a, secret) != s || len(secret) != 43) {
			t.Fatalf("%q is taken for the credential %q of %v", s, secret, a)
		}
		if secret := tokenSecret(s); secret != "" && len(TokenPrefix)+len(secret) > len(s) {
			t.Fatalf("%q gave the longer secret %q", s, secret)
		}
	})
}
