// Package enrollment owns the unauthenticated mux's enrollment protocols: EST (RFC 7030) and SCEP (RFC 8894). They bring
// their own authentication, so no middleware may answer 401 for them. Both are reserved here and answer 501.
package enrollment

import (
	"net/http"

	"certctl/shared/auth"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
)

// Mount reserves the protocols' paths.
func Mount(rt *endpoint.Router) {
	est, scep := absent("EST"), absent("SCEP")
	for _, operation := range []string{"GET cacerts", "GET csrattrs", "POST simpleenroll", "POST simplereenroll", "POST serverkeygen", "POST fullcmc"} {
		method, name := split(operation)
		endpoint.Raw(rt, method+" /.well-known/est/"+name, auth.Public, "est", est)
		endpoint.Raw(rt, method+" /.well-known/est/{profile}/"+name, auth.Public, "est", est)
	}
	for _, path := range []string{"/scep", "/scep/{profile}"} {
		endpoint.Raw(rt, "GET "+path, auth.Public, "scep", scep)
		endpoint.Raw(rt, "POST "+path, auth.Public, "scep", scep)
	}
}

func split(operation string) (method, name string) {
	for i := range operation {
		if operation[i] == ' ' {
			return operation[:i], operation[i+1:]
		}
	}
	return "", operation
}

func absent(protocol string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		endpoint.WriteProblem(w, r, fault.New(fault.NotImplemented, "%s is not offered by this server.", protocol))
	})
}
