package secret_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"certctl/shared/secret"
)

func TestMasterKeysAreRandomOrRefused(t *testing.T) {
	sequence := make([]byte, 32)
	for i := range sequence {
		sequence[i] = byte(7 * i)
	}
	few := make([]byte, 32) // twelve values in no order
	for i, b := range sha256.Sum256([]byte("few")) {
		few[i] = b % 12 * 21
	}
	encode := base64.StdEncoding.EncodeToString
	for name, value := range map[string]string{
		"unset":         " \n",
		"changeme":      "changeme",
		"not base64":    "****",
		"short":         encode(bytes.Repeat([]byte{1, 2}, 15)),
		"long":          strings.Repeat("ab", 32), // 64 hex digits read as 48 octets
		"zero":          encode(make([]byte, 32)),
		"repeated":      encode(bytes.Repeat([]byte{0xa7}, 32)),
		"repeated word": encode(bytes.Repeat([]byte{0xde, 0xad, 0xbe, 0xef}, 8)),
		"few values":    encode(few),
		"sequence":      encode(sequence),
		"a text":        encode([]byte("please-change-this-to-your-value")),
		"digits":        "0123456789012345678901234567890123456789012=",
	} {
		_, err := secret.ParseMasterKey(value)
		if err == nil || !strings.Contains(err.Error(), "CERTCTL_MASTER_KEY") || !strings.Contains(err.Error(), "openssl rand") {
			t.Errorf("%s: got %v, want an error that says what to set", name, err)
		}
		if v := strings.TrimSpace(value); err != nil && v != "" && strings.Contains(err.Error(), v) {
			t.Errorf("%s: the error repeats the value", name)
		}
	}
	for range 2000 {
		k := secret.GenerateMasterKey()
		for _, form := range []string{k.Encode(), k.Encode() + "\n", strings.TrimRight(k.Encode(), "="), strings.NewReplacer("+", "-", "/", "_").Replace(k.Encode())} {
			got, err := secret.ParseMasterKey(form)
			if err != nil || got.Encode() != k.Encode() {
				t.Fatalf("%q: %v", form, err)
			}
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	key := secret.GenerateMasterKey()
	text := secret.NewText("hunter2")
	type holder struct {
		hiddenText secret.Text
		hiddenKey  secret.MasterKey
		Text       secret.Text
		Pointer    *secret.Text
		Map        map[string]secret.Text
		Key        secret.MasterKey
	}
	h := holder{text, key, text, &text, map[string]secret.Text{"a": text}, key}
	var out bytes.Buffer
	for _, v := range []any{h, &h, text, &text, key, []secret.Text{text}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(handler).Info("x", "h", h, "text", text, "pointer", &text, "key", key)
	}
	j, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	raw, _ := base64.StdEncoding.DecodeString(key.Encode())
	for _, leak := range []string{"hunter2", "68756e74", "68, 0x75", "104 117", key.Encode(), fmt.Sprintf("%x", raw)[:12], fmt.Sprint(raw)[1:9]} {
		if strings.Contains(strings.ToLower(out.String()), strings.ToLower(leak)) {
			t.Errorf("%q leaked:\n%s", leak, out.String())
		}
	}
	if text.Reveal() != "hunter2" {
		t.Error("Reveal does not reveal")
	}
}

func TestTextReadsLikeAString(t *testing.T) {
	var v struct{ Password, Absent secret.Text }
	if err := json.Unmarshal([]byte(`{"Password":"hunter2"}`), &v); err != nil {
		t.Fatal(err)
	}
	if v.Password.Reveal() != "hunter2" || !v.Absent.IsZero() || v.Absent.String() != "" {
		t.Errorf("read %q and %q", v.Password.Reveal(), v.Absent.Reveal())
	}
	if !v.Password.Equal(secret.NewText("hunter2")) || v.Password.Equal(v.Absent) {
		t.Error("Equal compares something else")
	}
}
