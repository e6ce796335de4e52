package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// shot is a request to be sent over and over.
type shot struct {
	addr  string
	raw   func(i int64) []byte // the i-th request, head and body
	want  int                  // the status
	fresh bool                 // a connection per request
}

func get(addr, path string, header ...string) shot {
	raw := request("GET", path, nil, header)
	return shot{addr: addr, raw: func(int64) []byte { return raw }, want: 200}
}

func request(method, path string, body []byte, header []string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: bench\r\n", method, path)
	for _, h := range header {
		b.WriteString(h + "\r\n")
	}
	if body != nil {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// hit is what a burst measured.
type hit struct {
	rate    float64 // answers per second
	cpu     time.Duration
	dbCPU   time.Duration
	answers int64
	p50     time.Duration
}

func (h hit) micros() float64   { return float64(h.cpu.Microseconds()) / float64(max(h.answers, 1)) }
func (h hit) dbMicros() float64 { return float64(h.dbCPU.Microseconds()) / float64(max(h.answers, 1)) }

// burst sends a shot from some connections for a time. CPU is that of the server's process, and of Postgres.
func (b *bench) burst(s shot, connections int, d time.Duration, serverCPU func() time.Duration) (hit, error) {
	var n atomic.Int64
	var firstErr atomic.Pointer[error]
	var mu sync.Mutex
	var times []float64
	server, db := serverCPU(), b.pg.cpu()
	began := time.Now()
	end := began.Add(d)
	var g sync.WaitGroup
	for range connections {
		g.Go(func() {
			mine, err := shootUntil(s, end, &n)
			if err != nil {
				firstErr.CompareAndSwap(nil, &err)
			}
			mu.Lock()
			times = append(times, mine...)
			mu.Unlock()
		})
	}
	g.Wait()
	took := time.Since(began)
	h := hit{answers: n.Load(), cpu: serverCPU() - server, dbCPU: b.pg.cpu() - db, p50: time.Duration(median(times))}
	h.rate = float64(h.answers) / took.Seconds()
	if e := firstErr.Load(); e != nil {
		return h, *e
	}
	return h, nil
}

func shootUntil(s shot, end time.Time, n *atomic.Int64) (times []float64, err error) {
	var c net.Conn
	var in *bufio.Reader
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for first := true; first || time.Now().Before(end); first = false {
		i := n.Add(1)
		start := time.Now()
		if c == nil {
			if c, err = net.DialTimeout("tcp", s.addr, 5*time.Second); err != nil {
				return times, err
			}
			in = bufio.NewReaderSize(c, 8<<10)
		}
		if err = c.SetDeadline(start.Add(10 * time.Second)); err != nil {
			return times, err
		}
		if _, err = c.Write(s.raw(i)); err != nil {
			return times, err
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			return times, err
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			return times, err
		}
		if res.StatusCode != s.want {
			return times, fmt.Errorf("%d instead of %d: %.300s", res.StatusCode, s.want, body)
		}
		times = append(times, float64(time.Since(start)))
		if s.fresh || res.Close {
			_ = c.Close()
			c = nil
		}
	}
	return times, nil
}

// shootOnce sends one request.
func shootOnce(s shot) error {
	var n atomic.Int64
	_, err := shootUntil(s, time.Now(), &n)
	return err
}

// etag is the tag of an answer.
func etag(addr, path string) (string, error) {
	res, err := http.Get("http://" + addr + path) // #nosec G107 -- loopback
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != 200 || res.Header.Get("ETag") == "" {
		return "", fmt.Errorf("%s: %s without a tag", path, res.Status)
	}
	return res.Header.Get("ETag"), nil
}
