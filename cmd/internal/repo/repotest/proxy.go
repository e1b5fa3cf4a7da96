package repotest

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/signer"
)

// Fault is what goes wrong with one request. The zero value is nothing.
type Fault struct {
	Status int           // is answered, and the server not asked
	Refuse bool          // the connection ends, and the server is not asked
	Lose   bool          // the server does what it is asked, and its answer is lost
	Delay  time.Duration // before the server is asked
	Cut    int64         // the connection ends after so many bytes of the answer's body
	Flip   int64         // one bit of the answer's body at this position, from 1 on, is another
	FlipUp int64         // the same for the body of the request
	Drop   []string      // headers of the request that the server doesn't get
}

// Proxy stands before a server.
type Proxy struct {
	Addr string

	server *Gateway
	mu     sync.Mutex
	fault  func(*http.Request) Fault
	n      int
	opaque bool
}

// Proxy puts a proxy before the server, and points the environment to it.
func (g *Gateway) Proxy(t testing.TB) *Proxy {
	p := &Proxy{server: g}
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	p.Addr = s.Listener.Addr().String()
	g.Point(t, p.Addr)
	return p
}

// Set says what goes wrong from now on; nil is nothing.
func (p *Proxy) Set(fault func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.n = fault, 0
}

// Requests gives the number of requests since Set.
func (p *Proxy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// opaqueETag is put before the ETags of stored objects.
const opaqueETag = "opaque-"

// Opaque makes the ETags of stored objects say nothing of their content, as those of services that encrypt.
func (p *Proxy) Opaque(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opaque = on
}

func (p *Proxy) next(r *http.Request) (f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	if p.fault != nil {
		f = p.fault(r)
	}
	return f
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.next(r)
	time.Sleep(f.Delay)
	switch {
	case f.Refuse:
		hangUp(w)
		return
	case f.Status != 0:
		w.WriteHeader(f.Status)
		return
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", p.server.Addr, ""
	out.Body = flipped(r.Body, f.FlipUp)
	p.mu.Lock()
	opaque := p.opaque
	p.mu.Unlock()
	out.Header.Set("If-Match", strings.Replace(out.Header.Get("If-Match"), opaqueETag, "", 1))
	if out.Header.Get("If-Match") == "" {
		out.Header.Del("If-Match")
	}
	for _, name := range f.Drop {
		out.Header.Del(name)
	}
	if opaque || f.Drop != nil {
		out = signer.SignV4(*out, access, secret, "", region)
	}
	in, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		hangUp(w)
		return
	}
	defer in.Body.Close()
	if f.Lose {
		io.Copy(io.Discard, in.Body)
		hangUp(w)
		return
	}
	for name, values := range in.Header {
		w.Header()[name] = values
	}
	if etag := in.Header.Get("ETag"); opaque && etag != "" && !r.URL.Query().Has("partNumber") {
		w.Header().Set("ETag", `"`+opaqueETag+etag[1:])
	}
	w.WriteHeader(in.StatusCode)
	if f.Cut > 0 {
		io.CopyN(w, in.Body, f.Cut)
		http.NewResponseController(w).Flush()
		hangUp(w)
		return
	}
	io.Copy(w, flipped(in.Body, f.Flip))
}

// hangUp ends the connection without an answer, or in the middle of it.
func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		if c, ok := c.(*net.TCPConn); ok {
			c.SetLinger(0)
		}
		c.Close()
	}
}

// flipped gives r with a bit of byte at, from 1 on, turned over; 0 leaves all as it is.
func flipped(r io.ReadCloser, at int64) io.ReadCloser {
	if at == 0 {
		return r
	}
	return &flipper{r, at - 1}
}

type flipper struct {
	io.ReadCloser
	left int64
}

func (f *flipper) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.left >= 0 && f.left < int64(n) {
		p[f.left] ^= 0x10
	}
	f.left -= int64(n)
	return n, err
}
