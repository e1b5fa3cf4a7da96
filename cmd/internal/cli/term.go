package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/term"

	"vmkit/fsmap/mapfile"
)

// Term is what one run of a command talks to. Its methods are safe for concurrent use.
type Term struct {
	Name           string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// People says that stdout is a terminal and nobody asked for records.
	People bool

	progress bool

	mu     sync.Mutex
	bar    *Progress
	status Status
	warned int
	output []*Output
}

// maxWarnings bounds the warnings that a run prints; the records hold all of them.
const maxWarnings = 50

// Error prints an error message. It does not change the status.
func (t *Term) Error(err error) {
	// Errors that were joined are one message each.
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) && err.Error() == errors.Join(many.Unwrap()...).Error() {
		for _, e := range many.Unwrap() {
			t.Error(e)
		}
		return
	}
	t.say("error", err.Error())
}

// Warn prints a warning. After many of them it only counts.
func (t *Term) Warn(format string, args ...any) {
	t.mu.Lock()
	t.warned++
	ok := t.warned <= maxWarnings
	t.mu.Unlock()
	if ok {
		t.say("warning", fmt.Sprintf(format, args...))
	}
}

// Problem warns of a problem record, and makes it count.
func (t *Term) Problem(n *mapfile.Names, p *mapfile.Problem) {
	t.Warn("%s", n.Problem(p))
	t.Note(Gaps)
}

// Hint prints what the user can do.
func (t *Term) Hint(format string, args ...any) { t.say("hint", fmt.Sprintf(format, args...)) }

func (t *Term) say(verb, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bar.clear()
	fmt.Fprintf(t.Stderr, "%s: %s: %s\n", t.Name, verb, Printable(text))
}

// Note makes s count for the exit status.
func (t *Term) Note(s Status) {
	t.mu.Lock()
	t.status = t.status.And(s)
	t.mu.Unlock()
}

// Status gives the exit status as it stands.
func (t *Term) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status
}

// close ends what a run left open: the progress bar, the count of warnings, output that was not finished.
func (t *Term) close() {
	t.mu.Lock()
	bar, more, output := t.bar, t.warned-maxWarnings, t.output
	t.mu.Unlock()
	bar.Done()
	if more > 0 {
		t.say("warning", fmt.Sprintf("and %d more, which the records tell", more))
	}
	for _, o := range output {
		o.Abort()
	}
}

// Printable makes text from an image fit for a line on a terminal: control characters and broken UTF-8 are escaped.
func Printable(s string) string {
	ok := func(r rune) bool { return unicode.IsPrint(r) || unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Zs, r) }
	if strings.ToValidUTF8(s, "") == s && strings.IndexFunc(s, func(r rune) bool { return !ok(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == unicode.ReplacementChar && s[i] != "\uFFFD"[0]:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case ok(r):
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
	}
	return b.String()
}

// Size renders a number of bytes for people.
func Size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// isTerminal tells whether a stream is a terminal.
func isTerminal(s any) bool {
	f, ok := s.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
