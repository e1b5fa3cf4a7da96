package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/formats"
)

func TestStatusOrder(t *testing.T) {
	var s Status
	for i := len(order) - 1; i >= 0; i-- {
		if s = s.And(order[i]); s != order[i] {
			t.Errorf("%d does not win: %d", order[i], s)
		}
	}
	for _, o := range order {
		if got := o.And(Done); got != o {
			t.Errorf("%d and 0 give %d", o, got)
		}
	}
}

func TestStatusOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Status
	}{
		{nil, Done},
		{context.Canceled, Interrupted},
		{fmt.Errorf("walking: %w", context.Canceled), Interrupted},
		{Usagef("no image"), Usage},
		{fmt.Errorf("x: %w", formats.ErrEncrypted), Locked},
		{&os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}, Done},
		{errors.New("broken"), Failed},
	} {
		if got := StatusOf(tt.err); got != tt.want {
			t.Errorf("%v: status %d, want %d", tt.err, got, tt.want)
		}
	}
}

// run runs a command that does f.
func run(ctx context.Context, f func(context.Context, *Term, []string) error, args ...string) (status int, stdout, stderr string) {
	c := New("vmtest", "Usage: vmtest\n")
	c.Run = f
	var out, errs bytes.Buffer
	status = c.Exec(ctx, args, strings.NewReader(""), &out, &errs)
	return status, out.String(), errs.String()
}

func TestExec(t *testing.T) {
	returns := func(err error) func(context.Context, *Term, []string) error {
		return func(context.Context, *Term, []string) error { return err }
	}
	for _, tt := range []struct {
		name   string
		run    func(context.Context, *Term, []string) error
		args   []string
		status int
		stdout string
		stderr string
	}{
		{"done", returns(nil), nil, 0, "", ""},
		{"help", nil, []string{"--help"}, 0, "Usage: vmtest\n", ""},
		{"version", nil, []string{"--version"}, 0, Tool("vmtest") + "\n", ""},
		{"unknown option", nil, []string{"--nope"}, 2, "", "vmtest: error: unknown flag: --nope\nvmtest: hint: vmtest --help tells how it is used\n"},
		{"bad progress", nil, []string{"--progress", "x"}, 2, "",
			"vmtest: error: --progress is auto, always or never, not \"x\"\nvmtest: hint: vmtest --help tells how it is used\n"},
		{"failed", returns(errors.New("a.img: broken")), nil, 4, "", "vmtest: error: a.img: broken\n"},
		{"two errors", returns(errors.Join(errors.New("one"), errors.New("two"))), nil, 4, "", "vmtest: error: one\nvmtest: error: two\n"},
		{"no line of its own", returns(errors.New("a\nb\x1b[2J")), nil, 4, "", `vmtest: error: a\nb\x1b[2J` + "\n"},
		{"closed pipe", returns(fmt.Errorf("writing: %w", syscall.EPIPE)), nil, 0, "", ""},
		{"gaps", func(_ context.Context, t *Term, _ []string) error {
			t.Warn("p1: %s", "unreadable")
			t.Note(Gaps)
			return nil
		}, nil, 3, "", "vmtest: warning: p1: unreadable\n"},
		{"failed after gaps", func(_ context.Context, t *Term, _ []string) error {
			t.Note(Gaps)
			return io.ErrUnexpectedEOF
		}, nil, 4, "", "vmtest: error: unexpected EOF\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, stdout, stderr := run(t.Context(), tt.run, tt.args...)
			if status != tt.status || stdout != tt.stdout || stderr != tt.stderr {
				t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
		})
	}
}

func TestManyWarnings(t *testing.T) {
	_, _, stderr := run(t.Context(), func(_ context.Context, t *Term, _ []string) error {
		for i := range maxWarnings + 7 {
			t.Warn("file %d", i)
		}
		return nil
	})
	if n := strings.Count(stderr, "\n"); n != maxWarnings+1 || !strings.HasSuffix(stderr, "warning: and 7 more, which the records tell\n") {
		t.Errorf("%d lines, which end with %q", n, stderr[len(stderr)-60:])
	}
}

// TestInterrupted: a command that waits for its input and can't see the interruption ends all the same, and leaves no
// half-written output.
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	hang := make(chan struct{})
	defer close(hang)
	status, _, stderr := run(ctx, func(_ context.Context, t *Term, _ []string) error {
		o, err := t.Create(filepath.Join(dir, "out"))
		if err != nil {
			return err
		}
		io.WriteString(o, "half")
		<-hang
		return nil
	})
	if status != 130 || stderr != "vmtest: error: interrupted\n" {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestOutput(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "map")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(t *Term, private bool, end func(*Output) error) error {
		o, err := t.Create(path)
		if err != nil {
			return err
		}
		o.Private = private
		io.WriteString(o, "new")
		if b, _ := os.ReadFile(path); string(b) != "old" {
			return fmt.Errorf("the name shows %q before the output is whole", b)
		}
		return end(o)
	}
	status, _, stderr := run(t.Context(), func(_ context.Context, t *Term, _ []string) error {
		return write(t, false, func(*Output) error { return nil }) // never committed
	})
	if b, _ := os.ReadFile(path); status != 0 || string(b) != "old" {
		t.Errorf("status %d, %s; the file holds %q", status, stderr, b)
	}
	status, _, stderr = run(t.Context(), func(_ context.Context, t *Term, _ []string) error {
		return write(t, true, (*Output).Commit)
	})
	b, _ := os.ReadFile(path)
	st, err := os.Stat(path)
	if err != nil || status != 0 || string(b) != "new" || st.Mode().Perm() != 0o600 {
		t.Errorf("status %d, %s; the file holds %q with mode %v", status, stderr, b, st.Mode())
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":               "plain",
		"Grüße, 日本":           "Grüße, 日本",
		"e\u0301":             "e\u0301",
		"a\nb\tc":             `a\nb\x09c`,
		"\x1b]0;title\a":      `\x1b]0;title\x07`,
		"latin-1 \xe9":        `latin-1 \xe9`,
		"\u202egnp.exe":       `\u{202e}gnp.exe`,
		"\u009b31m":           `\u{9b}31m`,
		"replaced \uFFFD one": "replaced \uFFFD one",
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// terminal gives the two ends of a pseudo-terminal.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { ours.Close() })
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// TestTerminal: at a terminal there are lists for people and progress; messages don't run into the latter.
func TestTerminal(t *testing.T) {
	ours, theirs := terminal(t)
	shown := make(chan string)
	go func() {
		var b []byte
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			if b = append(b, buf[:n]...); err != nil || bytes.Contains(b, []byte("over")) {
				shown <- string(b)
				return
			}
		}
	}()
	people := map[string]bool{}
	for _, args := range [][]string{nil, {"--json"}, {"--progress=always"}} {
		c := New("vmtest", "")
		c.Run = func(_ context.Context, t *Term, _ []string) error {
			people[strings.Join(args, "")] = t.People
			p := t.Progress("files", -1, true)
			p.Add(7)
			time.Sleep(400 * time.Millisecond)
			t.Warn("odd")
			p.Done()
			return nil
		}
		if status := c.Exec(t.Context(), args, strings.NewReader(""), theirs, theirs); status != 0 {
			t.Errorf("%v: status %d", args, status)
		}
	}
	if !people[""] || people["--json"] {
		t.Errorf("for people: %v", people)
	}
	fmt.Fprint(theirs, "over")
	if s := <-shown; !strings.Contains(s, "vmtest: files") || !strings.Contains(s, "(7/-") || strings.Count(s, "\rvmtest: warning: odd\r\n") != 3 {
		t.Errorf("shown is %q", s)
	}
}
