package boot

import (
	"context"
	"encoding/json"
	"os"
	"sync"
	"time"

	"certctl/shared/auth"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// invocation is a Lambda handler: the raw event in, an answer that marshals to JSON out.
type invocation func(ctx context.Context, event json.RawMessage) (any, error)

// runLambda serves invocations and never returns. The process ends when ctx does (emulators send SIGTERM, which Main
// turns into that), after a present invocation has had two seconds to give back what it holds.
func runLambda(ctx context.Context, handle invocation) {
	var busy sync.RWMutex
	context.AfterFunc(ctx, func() {
		time.AfterFunc(2*time.Second, func() { os.Exit(0) })
		busy.Lock()
		time.Sleep(100 * time.Millisecond) // for the answer, which the library sends after the handler
		os.Exit(0)
	})
	lambda.StartWithOptions(func(ctx context.Context, event json.RawMessage) (any, error) {
		busy.RLock()
		defer busy.RUnlock()
		return handle(withInvocation(ctx), event)
	}, lambda.WithContext(ctx))
}

// withInvocation makes the invocation's id the request id.
func withInvocation(ctx context.Context) context.Context {
	if lc, ok := lambdacontext.FromContext(ctx); ok && lc.AwsRequestID != "" {
		return auth.WithRequestID(ctx, lc.AwsRequestID)
	}
	return ctx
}
