package boot

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"certctl/shared/boot/lambdahttp"
)

// ServeOptions say where and how to serve. The zero value serves on $PORT.
type ServeOptions struct {
	Log      *slog.Logger        // slog.Default() if nil
	Addr     string              // address to listen on; "": all addresses at $PORT, or at 8080
	Listener net.Listener        // used instead of Addr; Serve closes it
	TLS      *tls.Config         // serve TLS (with HTTP/2) by it
	OnListen func(addr net.Addr) // called when connections are accepted; not on Lambda
	Drain    time.Duration       // how long open requests may go on after the signal; 8 s if 0 (Cloud Run kills after 10)
	Reserve  time.Duration       // Lambda: taken from the invocation's deadline for the answer; 500 ms if 0

	headTimeout, bodyTimeout time.Duration
}

// What a client may take. A handler that streams for longer than writeTimeout sets its own with http.ResponseController.
const (
	headTimeout    = 10 * time.Second
	bodyTimeout    = time.Minute
	writeTimeout   = 5 * time.Minute
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
)

// Serve serves h until ctx or SIGTERM or SIGINT ends it, then lets open requests finish and returns nil, or an error if
// some did not finish in time. On Lambda it serves events instead and never returns. There the request's context carries
// the invocation's id as the request id; an edge keeps the id that it finds.
func Serve(ctx context.Context, h http.Handler, o ServeOptions) error {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if onLambda() {
		runLambda(ctx, lambdaHandler(h, o))
	}
	return serveHTTP(ctx, h, o)
}

func lambdaHandler(h http.Handler, o ServeOptions) invocation {
	if o.Reserve == 0 {
		o.Reserve = 500 * time.Millisecond
	}
	handle := lambdahttp.Handler(h, o.Log)
	return func(ctx context.Context, event json.RawMessage) (any, error) {
		ctx, cancel := withReserve(ctx, o.Reserve)
		defer cancel()
		res, err := handle(ctx, event)
		if err != nil {
			o.Log.ErrorContext(ctx, "event refused", "err", err, "bytes", len(event))
			return nil, err
		}
		return res, nil
	}
}

func serveHTTP(ctx context.Context, h http.Handler, o ServeOptions) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	l, err := listen(ctx, o)
	if err != nil {
		return err
	}
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx)) // open requests outlive the signal, within Drain
	defer cancel()
	srv := newServer(requests, h, o)
	done := make(chan error, 1)
	go func() {
		if o.TLS != nil {
			done <- srv.ServeTLS(l, "", "")
		} else {
			done <- srv.Serve(l)
		}
	}()
	if o.OnListen != nil {
		o.OnListen(l.Addr())
	}
	select {
	case err := <-done:
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
		stop() // a second signal ends the process
		return drain(srv, cancel, o)
	}
}

func listen(ctx context.Context, o ServeOptions) (net.Listener, error) {
	if o.Listener != nil {
		return o.Listener, nil
	}
	addr := o.Addr
	if addr == "" {
		port := os.Getenv("PORT")
		if port == "" {
			port = "8080"
		}
		addr = ":" + port
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return l, nil
}

func newServer(requests context.Context, h http.Handler, o ServeOptions) *http.Server {
	head, body := o.headTimeout, o.bodyTimeout
	if head == 0 {
		head = headTimeout
	}
	if body == 0 {
		body = bodyTimeout
	}
	return &http.Server{
		Handler:                      identified(h),
		TLSConfig:                    o.TLS,
		BaseContext:                  func(net.Listener) context.Context { return requests },
		ErrorLog:                     slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // other people's broken handshakes
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            head,
		ReadTimeout:                  body,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
	}
}

// identified gives each request an id, under which its problem document and the log are found together. An edge that takes
// over a proxy's id puts that in its place.
func identified(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r.WithContext(withRun(r.Context()))) })
}

// drain stops accepting and waits for open requests; what is still open then loses its context and its connection.
func drain(srv *http.Server, cancel context.CancelFunc, o ServeOptions) error {
	limit := o.Drain
	if limit == 0 {
		limit = 8 * time.Second
	}
	ctx, done := context.WithTimeout(context.Background(), limit)
	defer done()
	err := srv.Shutdown(ctx)
	cancel()
	if err != nil {
		_ = srv.Close()
		return fmt.Errorf("requests were still open %s after the signal to stop: %w", limit, err)
	}
	return nil
}

// readSmall reads a body of at most limit bytes.
func readSmall(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, tooLarge
	}
	return b, err
}
