package certlint

import "testing"

func TestEveryUnmeetableLintExists(t *testing.T) {
	t.Parallel()
	if _, err := allLints(); err != nil {
		t.Error(err)
	}
	if _, err := rfcLints(); err != nil {
		t.Error(err)
	}
}
