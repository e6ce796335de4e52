package id_test

import (
	"encoding/json"
	"strings"
	"testing"

	"certctl/shared/id"
)

func TestIdentifierReadsBackFromEveryForm(t *testing.T) {
	j := id.New[id.Job]()
	fromText, err := id.Parse[id.Job](j.String())
	if err != nil || fromText != j {
		t.Fatalf("Parse(%s) = %v, %v", j, fromText, err)
	}
	fromSuffix, err := id.ParseSuffix[id.Job](j.Suffix())
	if err != nil || fromSuffix != j {
		t.Fatalf("ParseSuffix = %v, %v", fromSuffix, err)
	}
	var fromSQL id.Job
	if err := fromSQL.Scan(j.UUID()); err != nil || fromSQL != j {
		t.Fatalf("Scan = %v, %v", fromSQL, err)
	}
	b, _ := json.Marshal(j)
	var fromJSON id.Job
	if err := json.Unmarshal(b, &fromJSON); err != nil || fromJSON != j {
		t.Fatalf("JSON %s = %v, %v", b, fromJSON, err)
	}
}

// The vector of the TypeID specification, v0.3.
func TestIdentifierMatchesTheSpecification(t *testing.T) {
	var i id.Job
	if err := i.Scan("01890a5d-ac96-774b-bcce-b302099a8057"); err != nil {
		t.Fatal(err)
	}
	if got := i.Suffix(); got != "01h455vb4pex5vsknk084sn02q" {
		t.Fatalf("suffix %s", got)
	}
}

func TestMalformedIdentifiersAreRefused(t *testing.T) {
	good := id.New[id.Job]().String()
	for _, s := range []string{"", "job", "job_", good[:len(good)-1], good + "0", strings.ToUpper(good), "crt" + good[3:], "job_8" + good[5:], "job_" + strings.Repeat("u", 26)} {
		if _, err := id.Parse[id.Job](s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestNoneIsNullEverywhere(t *testing.T) {
	var none id.Job
	b, _ := json.Marshal(none)
	v, _ := none.Value()
	if string(b) != "null" || v != nil || none.String() != "" {
		t.Fatalf("json %s, sql %v, text %q", b, v, none)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(id.New[id.Job]().String())
	f.Add("job_")
	f.Fuzz(func(t *testing.T, s string) {
		if i, err := id.Parse[id.Job](s); err == nil && i.String() != s && !i.IsZero() {
			t.Fatalf("%q reads as %s", s, i)
		}
	})
}
