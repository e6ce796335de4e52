// Command bare is the limit for starts: net/http and nothing else, on $PORT.
package main

import (
	"io"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	_ = http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil) // #nosec G114 -- a benchmark's limit on loopback
}
