package web

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"testing"
)

func TestThePolicyNamesThePagesScript(t *testing.T) {
	_, rest, _ := bytes.Cut(page, []byte("<script>"))
	script, _, ok := bytes.Cut(rest, []byte("</script>"))
	if !ok {
		t.Fatal("the page has no script")
	}
	sum := sha256.Sum256(script)
	if got := base64.StdEncoding.EncodeToString(sum[:]); got != scriptHash {
		t.Fatalf("scriptHash must be %s", got)
	}
}
