package boot

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"
)

// refuse writes f as a problem document. Unlike problem.Write it logs nothing: runs and checks have been logged already.
func refuse(w http.ResponseWriter, r *http.Request, f *fault.Error) {
	refuseWith(w, r, f, nil)
}

// refuseWith is refuse with the outcome of checks as an extension member.
func refuseWith(w http.ResponseWriter, r *http.Request, f *fault.Error, checks map[string]string) {
	doc := struct {
		problem.Document
		Checks map[string]string `json:"checks,omitempty"`
	}{problem.Of(r.Context(), f), checks}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((f.RetryAfter+time.Second-1)/time.Second)))
	}
	writeJSON(w, doc.Status, problem.ContentType, doc)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone; nobody is left to tell
}
