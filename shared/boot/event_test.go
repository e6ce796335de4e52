package boot

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/aws/aws-lambda-go/events"
)

func golden(t testing.TB, name string) json.RawMessage {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "events", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	ticks   = map[string]shape{"scheduler": shapeSchedule, "scheduler-input": shapeDirect, "rule": shapeSchedule, "sqs": shapeSQS, "async": shapeDirect, "direct": shapeDirect}
	foreign = []string{"http-api", "function-url", "cloudfront-function-url", "rest-api", "websocket", "s3", "eventbridge-other"}
)

func TestATickAnswersToItsOwnEventsOnly(t *testing.T) {
	t.Parallel()
	for name, want := range ticks {
		if got, err := shapeOf(golden(t, name), "sweep"); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range foreign {
		if _, err := shapeOf(golden(t, name), "sweep"); !errors.Is(err, errEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"async", "scheduler-input"} {
		if _, err := shapeOf(golden(t, name), "work"); !errors.Is(err, errEvent) {
			t.Errorf("%s sent to the worker: %v", name, err)
		}
	}
	for _, raw := range []string{`null`, `[]`, `"sweep"`, `{"kind":1}`, `{"kind":null}`, `{"Records":[]}`, `{"hello":1}`, `1`} {
		if _, err := shapeOf(json.RawMessage(raw), "sweep"); !errors.Is(err, errEvent) {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// Members that AWS documents and the golden files lack would go unnoticed; members that AWS does not know must not be there.
func TestGoldenEventsMatchTheTypesOfAWS(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]any{
		"http-api": &events.APIGatewayV2HTTPRequest{}, "function-url": &events.APIGatewayV2HTTPRequest{},
		"cloudfront-function-url": &events.APIGatewayV2HTTPRequest{}, "sqs": &events.SQSEvent{}, "rule": &events.EventBridgeEvent{},
	} {
		d := json.NewDecoder(bytes.NewReader(golden(t, name)))
		d.DisallowUnknownFields()
		if err := d.Decode(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnSQSAnswerHoldsAnEmptyListAndNotNull(t *testing.T) {
	t.Parallel()
	if b, _ := json.Marshal(sqsDone); string(b) != `{"batchItemFailures":[]}` {
		t.Errorf("%s", b)
	}
}
