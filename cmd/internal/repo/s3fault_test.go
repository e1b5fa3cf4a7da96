package repo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
)

// nowAndThen gives a fault with a quarter of the requests that match accepts.
func nowAndThen(match func(*http.Request) bool, f repotest.Fault) func(*http.Request) repotest.Fault {
	r := rand.New(rand.NewPCG(1, 2))
	return func(req *http.Request) repotest.Fault {
		if !match(req) || r.IntN(4) > 0 {
			return repotest.Fault{}
		}
		return f
	}
}

// first gives a fault with the first requests that match accepts.
func first(limit int, match func(*http.Request) bool, f repotest.Fault) func(*http.Request) repotest.Fault {
	return func(r *http.Request) repotest.Fault {
		if limit == 0 || !match(r) {
			return repotest.Fault{}
		}
		limit--
		return f
	}
}

// always gives a fault with every request that match accepts.
func always(match func(*http.Request) bool, f repotest.Fault) func(*http.Request) repotest.Fault {
	return first(-1, match, f)
}

func any(*http.Request) bool      { return true }
func upload(r *http.Request) bool { return r.Method == http.MethodPut }
func download(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Query().Get("list-type") == ""
}
func completing(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
}

// TestS3Faults: what goes wrong for a while is overcome, and what is stored and read is right all the same.
func TestS3Faults(t *testing.T) {
	g := repotest.Start(t)
	p := g.Proxy(t)
	repo.Hurry(t)
	data := repotest.Noise(7, 3*repo.Head+12345)
	for _, test := range []struct {
		name  string
		fault func(*http.Request) repotest.Fault
	}{
		{"503", nowAndThen(any, repotest.Fault{Status: 503})},
		{"500", nowAndThen(any, repotest.Fault{Status: 500})},
		{"refused", nowAndThen(any, repotest.Fault{Refuse: true})},
		{"slow", always(any, repotest.Fault{Delay: 5 * time.Millisecond})},
		{"answers lost", nowAndThen(any, repotest.Fault{Lose: true})},
		{"the first answers to uploads lost", first(5, upload, repotest.Fault{Lose: true})},
		{"the answer to the last request lost", first(1, completing, repotest.Fault{Lose: true})},
		{"bodies cut", nowAndThen(download, repotest.Fault{Cut: 1000})},
		{"stalled", first(3, upload, repotest.Fault{Delay: 2 * time.Second})},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.Set(nil)
			s := openS3(t)
			defer s.Close()
			p.Set(test.fault)
			unlock, err := s.Lock(t.Context(), "web1")
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{100, len(data)} {
				name := "web1/" + strings.ReplaceAll(test.name, " ", "-") + string(rune('a'+size%26))
				w, err := s.Create(t.Context(), name, true)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(data[:size]); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				o, err := s.Open(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				for _, piece := range []int{1000, 1 << 20} {
					var got bytes.Buffer
					if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, io.NewSectionReader(o, 0, o.Size()), make([]byte, piece)); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got.Bytes(), data[:size]) {
						t.Errorf("%d bytes come back as others", size)
					}
				}
			}
			if err := unlock(); err != nil {
				t.Error(err)
			}
			n := 0
			if err := s.List(t.Context(), "web1/", func(repo.Info) error { n++; return nil }); err != nil || n == 0 {
				t.Errorf("the list has %d files: %v", n, err)
			}
		})
	}
}

// TestS3Fails: what doesn't get better ends with one line that says where, and leaves nothing.
func TestS3Fails(t *testing.T) {
	g := repotest.Start(t)
	p := g.Proxy(t)
	repo.Hurry(t)
	data := repotest.Noise(8, 2*repo.Head)
	s := openS3(t)
	defer s.Close()
	write := func(name string) error {
		w, err := s.Create(t.Context(), name, false)
		if err != nil {
			return err
		}
		defer w.Abort()
		if _, err := w.Write(data); err != nil {
			return err
		}
		_, err = w.Commit(t.Context())
		return err
	}
	if err := write("web1/there"); err != nil {
		t.Fatal(err)
	}
	read := func(string) error {
		o, err := s.Open(t.Context(), "web1/there")
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
		if err == nil && !bytes.Equal(b, data) {
			t.Error("other bytes were read")
		}
		return err
	}
	for _, test := range []struct {
		name  string
		fault func(*http.Request) repotest.Fault
		do    func(string) error
		want  string
	}{
		{"gone while writing", always(any, repotest.Fault{Refuse: true}), write, "can't be reached, or broke off"},
		{"gone while reading", always(any, repotest.Fault{Refuse: true}), read, "can't be reached, or broke off"},
		{"out of service", always(any, repotest.Fault{Status: 503}), write, "answers 503"},
		{"forbidden", always(any, repotest.Fault{Status: 403}), read, "refuses access with these credentials"},
		{"cut for ever", always(download, repotest.Fault{Cut: 1}), read, "can't be reached, or broke off"},
		{"a bit of what is sent flips", always(upload, repotest.Fault{FlipUp: 77}), write, "answers 400"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.Set(test.fault)
			defer p.Set(nil)
			name := "web1/" + strings.ReplaceAll(test.name, " ", "-")
			err := test.do(name)
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "s3://backups/some/where/web1/") {
				t.Fatalf("the error is %v", err)
			}
			if strings.Contains(err.Error(), "tester-secret") {
				t.Errorf("the error tells the secret: %v", err)
			}
			p.Set(nil)
			if _, err := s.Open(t.Context(), name); !errors.Is(err, repo.ErrNotExist) {
				t.Errorf("something is there: %v", err)
			}
		})
	}
}

// TestS3Verify: an object that the service stores otherwise than it was sent, or whose ETag says nothing, is read back.
func TestS3Verify(t *testing.T) {
	g := repotest.Start(t)
	p := g.Proxy(t)
	repo.Hurry(t)
	s := openS3(t)
	defer s.Close()
	data := repotest.Noise(9, 2*repo.Head+99)
	for _, size := range []int{1000, len(data)} {
		write := func(name string) error {
			w, err := s.Create(t.Context(), name, false)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			if _, err := w.Write(data[:size]); err != nil {
				t.Fatal(err)
			}
			_, err = w.Commit(t.Context())
			return err
		}
		p.Opaque(true)
		if err := write("web1/opaque"); err != nil {
			t.Errorf("%d bytes with an ETag that says nothing: %v", size, err)
		}
		p.Set(first(1, download, repotest.Fault{Flip: 500}))
		if err := write("web1/spoilt"); err == nil || !strings.Contains(err.Error(), "is not what was sent") {
			t.Errorf("%d bytes that come back as others: %v", size, err)
		}
		p.Opaque(false)
		p.Set(nil)
		if _, err := s.Open(t.Context(), "web1/spoilt"); !errors.Is(err, repo.ErrNotExist) {
			t.Errorf("the spoilt object: %v", err)
		}
	}
}

// TestS3Lock: a lock is refreshed while it is held; one whose owner is dead is taken over, by one of many, and the dead
// one, should it come back, writes no more.
func TestS3Lock(t *testing.T) {
	g := repotest.Start(t)
	p := g.Proxy(t)
	repo.Hurry(t)
	repo.ShortLocks(t)
	dead := openS3(t)
	defer dead.Close()
	unlock, err := dead.Lock(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	w, err := dead.Create(t.Context(), "web1/x", false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	w.Write([]byte("x"))
	other := openS3(t)
	defer other.Close()
	time.Sleep(4 * time.Second) // longer than a lock lives
	if _, err := other.Lock(t.Context(), "web1"); !errors.Is(err, repo.ErrLocked) {
		t.Fatalf("though the lock is refreshed: %v", err)
	}
	// From here on the first one is cut off from the service, the others are not.
	p.Set(always(any, repotest.Fault{Refuse: true}))
	g.Point(t, g.Addr)
	time.Sleep(4 * time.Second)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 8 {
		wg.Go(func() {
			s := openS3(t)
			defer s.Close()
			_, err := s.Lock(t.Context(), "web1")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, repo.ErrLocked) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d took the lock over", won)
	}
	p.Set(nil)
	if _, err := w.Commit(context.Background()); err == nil || !strings.Contains(err.Error(), "may write no more") {
		t.Errorf("the one that was dead writes: %v", err)
	}
	if err := unlock(); err == nil {
		t.Error("the one that was dead unlocks")
	}
}

// TestS3NoConditions: a service that ignores conditions on writes is refused.
func TestS3NoConditions(t *testing.T) {
	g := repotest.Start(t)
	p := g.Proxy(t)
	p.Set(func(r *http.Request) repotest.Fault {
		return repotest.Fault{Drop: []string{"If-None-Match", "If-Match"}}
	})
	s := openS3(t)
	defer s.Close()
	if _, err := s.Lock(t.Context(), "web1"); err == nil || !strings.Contains(err.Error(), "ignores If-Match") {
		t.Errorf("the lock: %v", err)
	}
}

// TestS3Sweep: the parts of a writer that was killed are removed by the next one.
func TestS3Sweep(t *testing.T) {
	repotest.Start(t)
	s := openS3(t)
	defer s.Close()
	w, err := s.Create(t.Context(), "web1/x", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 3*repo.Head)); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.Lock(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := w.Commit(t.Context()); err == nil {
		t.Error("the parts are there still")
	}
}

func TestS3Settings(t *testing.T) {
	for _, url := range []string{"s3://", "s3:///x", "http://x/y", "s3://b/../x", "s3://b//x"} {
		if _, err := repo.OpenS3(t.Context(), url); err == nil || !strings.Contains(err.Error(), "not of the form") {
			t.Errorf("%s: %v", url, err)
		}
	}
	g := repotest.Start(t)
	dir := t.TempDir()
	repotest.Write(t, dir+"/config", "[default]\nregion = eu-north-1\n[profile lab]\nendpoint_url = http://"+g.Addr+"\nregion = us-east-1\n")
	repotest.Write(t, dir+"/credentials", "[lab]\naws_access_key_id = tester\naws_secret_access_key = tester-secret\n")
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": dir + "/config", "AWS_SHARED_CREDENTIALS_FILE": dir + "/credentials", "AWS_PROFILE": "lab",
		"AWS_ENDPOINT_URL": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_REGION": "",
	} {
		t.Setenv(name, value)
	}
	s, err := repo.OpenS3(t.Context(), "s3://"+repotest.Bucket)
	if err != nil {
		t.Fatalf("settings from files: %v", err)
	}
	s.Close()
	if _, err := repo.OpenS3(t.Context(), "s3://nobucket/x"); err == nil || !strings.Contains(err.Error(), `there is no bucket "nobucket"`) {
		t.Errorf("no bucket: %v", err)
	}
	t.Setenv("AWS_ENDPOINT_URL", "ftp://x")
	if _, err := repo.OpenS3(t.Context(), "s3://x"); err == nil || !strings.Contains(err.Error(), "the S3 endpoint") {
		t.Errorf("a bad endpoint: %v", err)
	}
	t.Setenv("AWS_ENDPOINT_URL", "http://"+g.Addr)
	t.Setenv("AWS_PROFILE", "nobody")
	if _, err := repo.OpenS3(t.Context(), "s3://x"); err == nil || !strings.Contains(err.Error(), "no S3 credentials") {
		t.Errorf("no credentials: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "tester")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
	if _, err := repo.OpenS3(t.Context(), "s3://"+repotest.Bucket); err == nil || strings.Contains(err.Error(), "wrong-secret") || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("wrong credentials: %v", err)
	}
}

// TestS3Steps writes an object through every kind of part.
func TestS3Steps(t *testing.T) {
	repotest.Start(t)
	repo.ShortSteps(t)
	s := openS3(t)
	defer s.Close()
	data := repotest.Noise(10, repo.Head+3*(6<<20)+2*(7<<20)+1)
	w, err := s.Create(t.Context(), "web1/x", false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := s.Open(t.Context(), "web1/x")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size())); err != nil || !bytes.Equal(b, data) {
		t.Errorf("other bytes: %v", err)
	}
	w, err = s.Create(t.Context(), "web1/y", false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(make([]byte, 60<<20)); err == nil || !strings.Contains(err.Error(), "longer than S3 objects") {
		t.Errorf("too long an object: %v", err)
	}
}
