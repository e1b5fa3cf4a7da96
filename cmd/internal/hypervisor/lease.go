package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// Lease is the pipe to whoever copies the files: as long as its reader keeps it open, the machines are held.
type Lease struct {
	file   *os.File
	quiet  bool // a terminal: people need no record a second
	closed bool
}

// NewLease takes the stream that records are written to. A regular file is refused: it never hangs up.
func NewLease(w io.Writer) (*Lease, error) {
	file, ok := w.(*os.File)
	if !ok {
		return nil, errors.New("the lease needs a pipe to write to")
	}
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() {
		return nil, errors.New("stdout is a file, which never tells when its reader is done: " +
			"use a pipe, as in vmfreeze web1 | vmclone -C DIR, or give a command after --")
	}
	return &Lease{file: file}, nil
}

// File is the lease's write end, for the guard.
func (l *Lease) File() *os.File { return l.file }

// Quiet leaves out the hold records.
func (l *Lease) Quiet() { l.quiet = true }

// Close closes this process's write end.
func (l *Lease) Close() error {
	if l.closed {
		return nil
	}
	l.closed = true
	return l.file.Close()
}

// Closed tells whether it was closed.
func (l *Lease) Closed() bool { return l.closed }

// Release is a FIFO in which a reader says that it is done with one machine of several.
type Release struct {
	*os.File
	Path string
}

// NewRelease makes a FIFO in a folder.
func NewRelease(dir string) (*Release, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("release-%d-%d.fifo", os.Getpid(), time.Now().UnixNano()))
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	return &Release{f, path}, nil
}

// Close closes and removes it.
func (r *Release) Close() error { return errors.Join(r.File.Close(), os.Remove(r.Path)) }

// End says why a lease ended.
type End string

const (
	ReaderLeft   End = "its reader closed the pipe"
	ReaderDone   End = "its reader is done with this machine"
	CommandEnded End = "the command ended"
	TimeUp       End = "the time was up"
	Interrupted  End = "vmfreeze was interrupted"
)

// Term says until when a lease lasts, at most.
type Term struct {
	Deadline time.Time       // or zero
	Command  <-chan struct{} // closed when the command given after -- ended; with one, the reader may leave before
	Release  *os.File        // a FIFO in which the reader says that it is done with this machine; or nil
}

// pipeBuf is what a pipe that has room at all takes without blocking.
const pipeBuf = 4096

// Write sends records to the reader, as fast as it takes them, until the lease ends. It gives no end where all was
// written.
func (l *Lease) Write(ctx context.Context, b []byte, t Term) (End, error) {
	for len(b) > 0 {
		ready, end, err := l.wait(ctx, t, time.Time{}, true)
		if err != nil || end != "" && end != ReaderLeft {
			return end, err
		}
		if end == ReaderLeft {
			return l.left(ctx, t)
		}
		if !ready {
			continue
		}
		n, err := l.file.Write(b[:min(len(b), pipeBuf)])
		b = b[n:]
		if errors.Is(err, unix.EPIPE) {
			return l.left(ctx, t)
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return "", fmt.Errorf("stdout: %w", err)
		}
	}
	return "", nil
}

// Hold waits until the lease ends, and writes a hold record each second.
func (l *Lease) Hold(ctx context.Context, t Term) (End, error) {
	next := time.Now()
	for n := int64(0); ; {
		_, end, err := l.wait(ctx, t, next, false)
		switch {
		case err != nil, end != "" && end != ReaderLeft:
			return end, err
		case end == ReaderLeft:
			return l.left(ctx, t)
		case time.Now().Before(next):
			continue
		}
		next = next.Add(time.Second)
		if l.quiet {
			continue
		}
		// A reader that takes nothing for a while is given nothing.
		if ready, end, _ := l.wait(ctx, t, time.Now(), true); ready && end == "" {
			if _, err := l.file.Write(holdRecord(n)); errors.Is(err, unix.EPIPE) {
				return l.left(ctx, t)
			}
		}
		n++
	}
}

// left is what follows when nobody reads any more: with a command, it is the command's end that counts.
func (l *Lease) left(ctx context.Context, t Term) (End, error) {
	if t.Command == nil {
		return ReaderLeft, nil
	}
	l.Close()
	var timeout <-chan time.Time
	if !t.Deadline.IsZero() {
		timeout = time.After(time.Until(t.Deadline))
	}
	select {
	case <-t.Command:
		return CommandEnded, nil
	case <-ctx.Done():
		return Interrupted, nil
	case <-timeout:
		return TimeUp, nil
	}
}

// step bounds a wait, so that what no file descriptor tells is noticed.
const step = 50 * time.Millisecond

// wait waits for a moment, at most until the given time: for the reader to leave, and with room for it to take more.
func (l *Lease) wait(ctx context.Context, t Term, until time.Time, room bool) (ready bool, end End, err error) {
	select {
	case <-t.Command:
		return false, CommandEnded, nil
	case <-ctx.Done():
		return false, Interrupted, nil
	default:
	}
	now := time.Now()
	if !t.Deadline.IsZero() && !now.Before(t.Deadline) {
		return false, TimeUp, nil
	}
	d := step
	if !until.IsZero() {
		d = max(0, min(d, until.Sub(now)))
	}
	fds := []unix.PollFd{{Fd: int32(l.file.Fd())}, {Fd: -1}}
	if room {
		fds[0].Events = unix.POLLOUT
	}
	if t.Release != nil {
		fds[1] = unix.PollFd{Fd: int32(t.Release.Fd()), Events: unix.POLLIN}
	}
	if _, err := unix.Poll(fds, int((d+time.Millisecond-1)/time.Millisecond)); err != nil && err != unix.EINTR {
		return false, "", fmt.Errorf("poll: %w", err)
	}
	switch {
	case fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0:
		return false, ReaderLeft, nil
	case fds[1].Revents&unix.POLLIN != 0:
		return false, ReaderDone, nil
	}
	return fds[0].Revents&unix.POLLOUT != 0, "", nil
}

// holdRecord gives a hold record that fills a buffer of the usual size: a filter in between that collects its output
// passes it on, and so learns that its own reader has left.
func holdRecord(seconds int64) []byte {
	head := fmt.Sprintf(`{"type":"hold","seconds":%d,"pad":"`, seconds)
	const tail = "\"}\n"
	return []byte(head + strings.Repeat(" ", pipeBuf-len(head)-len(tail)) + tail)
}

// Records writes machines and what ends their stream.
func Records(vms ...*mapfile.VM) ([]byte, error) {
	var b strings.Builder
	w := mapfile.NewWriter(&b)
	for _, vm := range vms {
		if err := w.Record(vm); err != nil {
			return nil, fmt.Errorf("%s: %w", vm.Name, err)
		}
	}
	end := &mapfile.End{Kind: mapfile.EndOfVMs, VMs: int64(len(vms))}
	if err := errors.Join(w.End(end), w.Flush()); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}
