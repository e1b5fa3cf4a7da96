// Package program runs the command-line tools of hypervisors.
package program

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"vmkit/cmd/internal/hypervisor"
)

// Program is a tool of a hypervisor.
type Program struct {
	Name string   // "virsh", looked up in PATH
	Args []string // that come before all others
	// Env is set in its environment, in which messages are English anyhow.
	Env []string
}

// Error is what a tool said when it failed.
type Error struct {
	Program string
	Verb    string
	Text    string // its message, in one line
	Err     error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: %s", e.Program, e.Verb, e.Text)
}

func (e *Error) Unwrap() error { return e.Err }

// maxOutput bounds what a tool may say: the definition of a machine takes some kilobytes, a list of thousands a megabyte.
const maxOutput = 16 << 20

// Run runs the tool and gives what it wrote to its output. It gives ErrUnavailable where there is no such tool, and an
// *Error where the tool failed.
func (p *Program) Run(ctx context.Context, args ...string) (string, error) {
	return p.Feed(ctx, "", args...)
}

// Feed is Run with something to read for the tool.
func (p *Program) Feed(ctx context.Context, input string, args ...string) (string, error) {
	path, err := exec.LookPath(p.Name)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not installed", hypervisor.ErrUnavailable, p.Name)
	}
	cmd := exec.CommandContext(ctx, path, append(p.Args[:len(p.Args):len(p.Args)], args...)...)
	// C.UTF-8 is English and leaves other letters as they are, which some tools escape in C.
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "LANG=C.UTF-8", "LANGUAGE=")
	cmd.Env = append(cmd.Env, p.Env...)
	cmd.Stdin = strings.NewReader(input)
	cmd.WaitDelay = 2 * time.Second // a child of the tool's may keep its output open
	var out, errs limited
	cmd.Stdout, cmd.Stderr = &out, &errs
	// It ends with this process, so that nothing is still begun when somebody else takes things back. The signal comes at
	// the end of the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err = cmd.Run(); err == nil && !out.full {
		return out.kept.String(), nil
	}
	e := &Error{Program: filepath.Base(p.Name), Verb: verb(args), Err: err}
	switch {
	case ctx.Err() != nil:
		e.Err, e.Text = ctx.Err(), ctx.Err().Error()
	case out.full:
		e.Text = fmt.Sprintf("more than %d bytes of output", maxOutput)
	default:
		e.Text = cmp.Or(line(errs.kept.String()), line(out.kept.String()), err.Error())
	}
	return "", e
}

// Said tells whether an error is a tool's and has one of the words in its message.
func Said(err error, words ...string) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, w := range words {
		if strings.Contains(e.Text, w) {
			return true
		}
	}
	return false
}

// verb is the first argument that is no option.
func verb(args []string) string {
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			return a
		}
	}
	return ""
}

// line makes one line of a message.
func line(s string) string {
	var parts []string
	for l := range strings.Lines(s) {
		l = strings.TrimSpace(l)
		for _, prefix := range []string{"error: ", "Error: ", "VBoxManage: error: "} {
			l = strings.TrimPrefix(l, prefix)
		}
		if l != "" {
			parts = append(parts, l)
		}
	}
	return strings.Join(parts, ": ")
}

// limited keeps the first maxOutput bytes.
type limited struct {
	kept bytes.Buffer
	full bool
}

func (l *limited) Write(p []byte) (int, error) {
	n := len(p)
	if room := maxOutput - l.kept.Len(); n > room {
		p, l.full = p[:room], true
	}
	l.kept.Write(p)
	return n, nil
}
