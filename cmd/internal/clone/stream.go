package clone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// Machine is a machine to be cloned.
type Machine struct {
	VM  *mapfile.VM
	Raw json.RawMessage // its record as it came
}

// Stream is what vmfreeze writes: machines, the end of their list, and hold records for as long as they are held. One
// stream may follow another, when what was held is released. Its pipe is the lease.
type Stream struct {
	// Problem is called for the problem records in between.
	Problem func(*mapfile.Problem)

	in      *os.File
	wake    *os.File // closed to end the reading
	records chan any // of types *mapfile.Other (a vm), *mapfile.End, *mapfile.Problem; closed at the end
	err     error    // why the reading ended, once records is closed
	ahead   atomic.Bool
	last    []*Machine
	closed  bool
}

// ErrReleased means that a machine was let go before its clone stood on its own. What was copied is not to be trusted.
var ErrReleased = errors.New("the machine was let go before its files were copied")

// Open takes the pipe from vmfreeze, which it closes in the end.
func Open(in *os.File) (*Stream, error) {
	st, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return nil, errors.New("stdin is no pipe, so nothing tells whether the machine is still held: use vmfreeze VM | vmclone -C DIR")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &Stream{in: in, wake: w, records: make(chan any)}
	go s.read(&pipe{int(in.Fd()), r})
	return s, nil
}

// pipe reads a file until another one is closed at its other end. It leaves the file's flags alone: others may have
// the same pipe open.
type pipe struct {
	fd   int
	wake *os.File
}

func (p *pipe) Read(b []byte) (int, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(p.wake.Fd())}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return 0, err
		}
		switch {
		case fds[1].Revents != 0:
			return 0, os.ErrClosed
		case fds[0].Revents == 0:
			continue
		}
		n, err := unix.Read(p.fd, b)
		switch {
		case n > 0:
			return n, nil
		case err == unix.EINTR, err == unix.EAGAIN:
		case err != nil:
			return 0, err
		default:
			return 0, io.EOF
		}
	}
}

// read passes on what matters of the stream.
func (s *Stream) read(p *pipe) {
	defer close(s.records)
	defer p.wake.Close()
	ended := false
	for r := mapfile.NewReader(p); ; {
		record, err := r.Next()
		if err != nil {
			s.err = err
			return
		}
		switch x := record.(type) {
		case *mapfile.Map:
			s.err = errors.New("a map, where vm records are expected")
			return
		case *mapfile.Other:
			if x.Type != "vm" {
				continue
			}
		case *mapfile.Problem:
			p := *x
			record = &p
		case *mapfile.End:
		default:
			continue
		}
		s.ahead.Store(ended)
		_, ended = record.(*mapfile.End)
		s.records <- record
	}
}

// Next gives the machines that are held next. It gives io.EOF after the last.
func (s *Stream) Next(ctx context.Context) ([]*Machine, error) {
	s.last = nil
	for {
		if s.closed {
			return nil, io.EOF
		}
		var record any
		var ok bool
		select {
		case record, ok = <-s.records:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if !ok {
			if s.err != io.EOF || len(s.last) > 0 {
				return nil, fmt.Errorf("stdin: %w", s.err)
			}
			return nil, io.EOF
		}
		s.ahead.Store(false)
		switch x := record.(type) {
		case *mapfile.Problem:
			s.Problem(x)
		case *mapfile.Other:
			m := &Machine{VM: new(mapfile.VM), Raw: x.Raw}
			if err := x.Decode(m.VM); err != nil {
				return nil, fmt.Errorf("stdin: %w", err)
			}
			s.last = append(s.last, m)
		case *mapfile.End:
			if len(s.last) > 0 {
				return s.last, nil
			}
		}
	}
}

// Held tells, by ErrReleased, that the machines of the last Next are held no more.
func (s *Stream) Held() error {
	fds := []unix.PollFd{{Fd: int32(s.in.Fd())}}
	_, err := unix.Poll(fds, 0)
	for err == unix.EINTR {
		_, err = unix.Poll(fds, 0)
	}
	switch {
	case err != nil:
		return fmt.Errorf("stdin: %w", err)
	case fds[0].Revents != 0:
		return fmt.Errorf("%w: the pipe from vmfreeze hung up", ErrReleased)
	case s.ahead.Load():
		return fmt.Errorf("%w: vmfreeze went on to the next one", ErrReleased)
	}
	return nil
}

// Release lets the machines of the last Next go: it closes the pipe, or, where other machines follow, says in the FIFO
// that their record names that they may.
func (s *Stream) Release() error {
	vm := s.last[len(s.last)-1].VM
	err := tell(vm.Release)
	switch {
	case vm.Following == 0:
		return s.Close() // which says it too, unless somebody in between keeps the pipe open
	case err != nil:
		return errors.Join(fmt.Errorf("%s: vmfreeze can't be told to go on to the next machine: %w", vm.Name, err), s.Close())
	}
	return nil
}

// tell writes into a FIFO that vmfreeze reads.
func tell(fifo string) error {
	f, err := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write([]byte{'\n'})
	return err
}

// Close closes the pipe, and with it gives up all machines of the stream that are still to come.
func (s *Stream) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.wake.Close()
	for range s.records { // until the reading has ended
	}
	return s.in.Close()
}
