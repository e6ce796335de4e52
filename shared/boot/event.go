package boot

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/aws/aws-lambda-go/events"
)

// shape is what woke a tick.
type shape int

const (
	shapeDirect   shape = iota // an invoke, synchronous or not, of {} or {"kind": …}; also a schedule with such an input
	shapeSchedule              // EventBridge Scheduler's default event, or an EventBridge rule's
	shapeSQS                   // a batch of messages
)

// errEvent is the error of an event that is not this function's. An error makes the platform retry and then keep the
// event (dead letter), where an answer would lose it.
var errEvent = errors.New("this function does not answer to such an event")

// sqsDone tells SQS that no message of the batch failed. The slice is empty and not nil: null is taken for a fault by
// some pollers.
var sqsDone = events.SQSEventResponse{BatchItemFailures: []events.SQSBatchItemFailure{}}

// shapeOf sniffs an event. Members that it does not know are ignored (a schedule's input may carry its own), but an object
// of unknown members only is not an invoke of ours.
func shapeOf(event json.RawMessage, kind string) (shape, error) {
	var e struct {
		Kind    *string `json:"kind"`
		Records []struct {
			EventSource string `json:"eventSource"`
		} `json:"Records"`
		Source     string `json:"source"`
		DetailType string `json:"detail-type"`
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(event, &members) != nil || members == nil || json.Unmarshal(event, &e) != nil {
		return 0, fmt.Errorf("%w: it is no JSON object of a known form", errEvent)
	}
	switch {
	case len(members) == 0:
		return shapeDirect, nil
	case e.Kind != nil && *e.Kind == kind:
		return shapeDirect, nil
	case e.DetailType == "Scheduled Event" && (e.Source == "aws.events" || e.Source == "aws.scheduler"):
		return shapeSchedule, nil
	case len(e.Records) > 0 && e.Records[0].EventSource == "aws:sqs":
		return shapeSQS, nil
	}
	return 0, fmt.Errorf("%w: it is neither a schedule, nor an SQS batch, nor {\"kind\": %q}", errEvent, kind)
}
