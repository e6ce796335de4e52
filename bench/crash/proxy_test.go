//go:build crashtest

package crash

import (
	"bytes"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy is a TCP door to a Postgres on a Unix socket, and what can go wrong on such a way.
type proxy struct {
	url     string
	socket  string
	latency atomic.Int64 // of each direction, nanoseconds
	hole    atomic.Bool  // nothing passes any more, and nobody is told
	cuts    atomic.Int64 // COMMITs that are still to be cut off: passed on to the server, its answer never delivered
	cut     atomic.Int64 // how many were

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// door opens a proxy to the server of a URL and answers it with the URL through it.
func door(t testing.TB, database string) *proxy {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	p := &proxy{socket: q.Get("host") + "/.s.PGSQL." + q.Get("port"), conns: map[net.Conn]bool{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); p.reset() })
	u.Host, u.RawQuery = l.Addr().String(), "sslmode=disable"
	p.url = u.String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) keep(c net.Conn, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if open {
		p.conns[c] = true
	} else {
		delete(p.conns, c)
	}
}

// reset breaks every connection, as a firewall does that forgets.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

func (p *proxy) serve(c net.Conn) {
	s, err := net.Dial("unix", p.socket)
	if err != nil {
		_ = c.Close()
		return
	}
	p.keep(c, true)
	p.keep(s, true)
	var mute atomic.Bool // the server's answers do not arrive
	done := make(chan struct{}, 2)
	go func() { p.pipe(s, c, &mute, true); done <- struct{}{} }()
	go func() { p.pipe(c, s, &mute, false); done <- struct{}{} }()
	<-done
	for _, x := range []net.Conn{c, s} {
		_ = x.Close()
		p.keep(x, false)
	}
}

func (p *proxy) pipe(to, from net.Conn, mute *atomic.Bool, asks bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			for p.hole.Load() {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Duration(p.latency.Load()))
			commits := asks && bytes.Contains(bytes.ToLower(buf[:n]), []byte("commit\x00")) && p.cuts.Add(-1) >= 0
			if commits {
				mute.Store(true)
			}
			if !asks && mute.Load() {
				continue
			}
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
			if commits {
				p.cut.Add(1)
				time.Sleep(50 * time.Millisecond) // the server commits
				if tcp, ok := from.(*net.TCPConn); ok {
					_ = tcp.SetLinger(0)
				}
				_ = from.Close()
				return
			}
		}
		if err != nil {
			return
		}
	}
}
