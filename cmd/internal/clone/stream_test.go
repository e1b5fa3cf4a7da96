package clone

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// piped gives a stream and the end that vmfreeze would write to.
func piped(t *testing.T) (*Stream, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	s.Problem = func(*mapfile.Problem) {}
	t.Cleanup(func() { s.Close(); w.Close() })
	return s, w
}

const (
	vmLine   = `{"type":"vm","name":"m","driver":"x","target":"x:m","state_found":"running","quiesced":false,"files":[]}` + "\n"
	endLine  = `{"type":"end","vms":1}` + "\n"
	holdLine = `{"type":"hold","seconds":1,"pad":"   "}` + "\n"
)

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 12000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: it never came to that", what)
}

func TestHeld(t *testing.T) {
	s, w := piped(t)
	io.WriteString(w, vmLine+vmLine+endLine)
	ms, err := s.Next(t.Context())
	if err != nil || len(ms) != 2 || ms[0].VM.Name != "m" || string(ms[1].Raw)+"\n" != vmLine {
		t.Fatalf("%v, %v", ms, err)
	}
	io.WriteString(w, holdLine)
	if err := s.Held(); err != nil {
		t.Errorf("held: %v", err)
	}
	if err := s.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(holdLine)); !errors.Is(err, unix.EPIPE) {
		t.Errorf("the pipe was not closed: %v", err)
	}
	if _, err := s.Next(t.Context()); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

// TestHungUp: whoever wrote has gone, although there is still something to read.
func TestHungUp(t *testing.T) {
	s, w := piped(t)
	io.WriteString(w, vmLine+endLine+strings.Repeat(holdLine, 100))
	w.Close()
	if _, err := s.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Held(); !errors.Is(err, ErrReleased) {
		t.Errorf("held after all: %v", err)
	}
}

func TestCutStream(t *testing.T) {
	for _, text := range []string{vmLine, vmLine + endLine[:5], "no JSON\n", `{"type":"vm","name":7}` + "\n" + endLine, `{"type":"map","version":1}` + "\n"} {
		s, w := piped(t)
		io.WriteString(w, text)
		w.Close()
		if ms, err := s.Next(t.Context()); err == nil || err == io.EOF || len(ms) > 0 {
			t.Errorf("%q: %v, %v", text, ms, err)
		}
	}
	s, w := piped(t)
	w.Close()
	if _, err := s.Next(t.Context()); err == nil {
		t.Error("an empty stream is whole")
	}
}

// TestSequence: machines come one after another, and each is released by a byte.
func TestSequence(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "release")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	ours, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	first := strings.Replace(vmLine, `"files"`, fmt.Sprintf(`"following":1,"release":%q,"files"`, fifo), 1)
	s, w := piped(t)
	var problems []string
	s.Problem = func(p *mapfile.Problem) { problems = append(problems, p.Error) }
	io.WriteString(w, first+endLine+holdLine)
	if _, err := s.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Held(), s.Release()); err != nil {
		t.Fatal(err)
	}
	if n, err := ours.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("%d bytes, %v: not the word that it may go on", n, err)
	}
	io.WriteString(w, `{"type":"problem","what":"freeze","error":"odd"}`+"\n"+vmLine+endLine)
	if ms, err := s.Next(t.Context()); err != nil || len(ms) != 1 || len(problems) != 1 {
		t.Fatalf("%v, %v, %q", ms, err, problems)
	}
	// The time of this one is up, and vmfreeze goes on by itself.
	io.WriteString(w, vmLine+endLine)
	eventually(t, "the next machine is noticed", func() bool { return errors.Is(s.Held(), ErrReleased) })
	if ms, err := s.Next(t.Context()); err != nil || len(ms) != 1 || s.Held() != nil {
		t.Errorf("%v, %v", ms, err)
	}
	// Nobody reads the FIFO any more: all that is left is to close the pipe.
	s.last[0].VM.Following, s.last[0].VM.Release = 1, fifo+"x"
	if err := s.Release(); err == nil || !s.closed {
		t.Errorf("no FIFO: %v", err)
	}
}

func TestNoLease(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "vm.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Open(f); err == nil || !strings.Contains(err.Error(), "no pipe") {
		t.Errorf("a file: %v", err)
	}
}

// writeJournal writes a journal as vmfreeze does.
func writeJournal(t *testing.T, path string, j hypervisor.Journal) {
	t.Helper()
	j.Version, j.VM = 1, &mapfile.VM{Name: "m"}
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path+".new", string(b))
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestReleased(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "d.raw", "d")
	me, err := hypervisor.ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	m := machine(t, "m", "d.raw|disk|raw")
	m.VM.Journal = "journal"
	start := func(name string) *Clone {
		c, err := Start(t.Context(), m, &Options{Dir: "out", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	later := time.Now().Add(time.Hour)

	// The release goes on for a while.
	c := start("good")
	writeJournal(t, "journal", hypervisor.Journal{Owner: me})
	time.AfterFunc(50*time.Millisecond, func() {
		writeJournal(t, "journal", hypervisor.Journal{Owner: me, Ended: true, Released: &mapfile.Released{At: &later, PauseNS: 7, Resumed: true, By: "vmfreeze"}})
	})
	r, problems, err := c.Finish(t.Context())
	if err != nil || len(problems) > 0 || r.Released == nil || r.Released.PauseNS != 7 || !r.Released.Resumed {
		t.Errorf("%+v, %v, %v", r, problems, err)
	}

	// It failed: the clone counts, and so does the failure.
	writeJournal(t, "journal", hypervisor.Journal{Owner: me, Released: &mapfile.Released{At: &later, Error: "commit: no room"}})
	if r, problems, err := start("failed").Finish(t.Context()); err != nil || len(problems) != 1 || r.Released.Error != "commit: no room" {
		t.Errorf("%+v, %v, %v", r, problems, err)
	}

	// It began before all was read, which the pipe did not tell in time.
	early := time.Now().Add(-time.Hour)
	writeJournal(t, "journal", hypervisor.Journal{Owner: me, Ended: true, Released: &mapfile.Released{At: &early}})
	if _, _, err := start("early").Finish(t.Context()); !errors.Is(err, ErrReleased) {
		t.Errorf("released early: %v", err)
	}

	// Somebody else had the machine go on meanwhile.
	writeJournal(t, "journal", hypervisor.Journal{Owner: me, Ended: true, Released: &mapfile.Released{At: &later, Spoiled: true, Error: "it ran"}})
	if _, _, err := start("spoiled").Finish(t.Context()); !errors.Is(err, ErrReleased) || !strings.Contains(err.Error(), "it ran") {
		t.Errorf("spoiled: %v", err)
	}

	// There is no journal: what happened is not known.
	if err := os.Remove("journal"); err != nil {
		t.Fatal(err)
	}
	if r, problems, err := start("unknown").Finish(t.Context()); err != nil || len(problems) != 1 || r.Released != nil {
		t.Errorf("%+v, %v, %v", r, problems, err)
	}
	if got := left(t, "out"); len(got) != 3 {
		t.Errorf("there are %q", got)
	}
}
