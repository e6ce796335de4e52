package auth

import (
	"net/http"
	"testing"

	"certctl/shared/id"
)

func FuzzCredentialsAreTakenApartOrRefused(f *testing.F) {
	text, _ := NewSecret()
	f.Add("Bearer " + Secret(id.New[id.Key](), text))
	f.Add("bearer  certctl_01h455vb4pex5vsknk084sn02q_x")
	f.Add("Basic eA==")
	f.Fuzz(func(t *testing.T, header string) {
		k, secret, ok := Split(Bearer(&http.Request{Header: http.Header{"Authorization": {header}}}))
		if !ok {
			return
		}
		if again, same, ok := Split(Secret(k, secret)); !ok || again != k || same != secret || len(secret) != 43 {
			t.Fatalf("%v %q became %v %q", k, secret, again, same)
		}
	})
}
