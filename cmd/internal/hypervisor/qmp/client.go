package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hypervisor"
)

const (
	// greetingPatience is how long QEMU may take to greet: it serves one client at a time, and leaves others waiting.
	greetingPatience = 3 * time.Second
	// commandPatience bounds one command. None that is used here works for long; jobs tell of their end by events.
	commandPatience = 60 * time.Second
	// askEvery is how often QEMU is asked how far it is: not every change of state is an event.
	askEvery = 20 * time.Millisecond
	// maxReply bounds a line from QEMU: query-named-block-nodes of a machine with hundreds of disks has some MB.
	maxReply = 64 << 20
)

// Error is QEMU's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("QEMU refuses %s: %s", e.Command, e.Desc) }

// refused tells whether err is QEMU's refusal, and not a failure to reach it.
func refused(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// client is a connection to a QMP socket. It is for one goroutine at a time; a second one reads.
type client struct {
	conn   *net.UnixConn
	peer   int // QEMU's process id
	qemu   string
	nextID int

	replies chan reply
	gone    chan struct{} // closed when the connection is

	closed chan struct{} // closed by Close

	mu   sync.Mutex
	seen map[string]int // how often each event came
	more chan struct{}  // has room for one: events came
	err  error
}

type reply struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	Event  string          `json:"event"` // set where it is no reply
}

// dial connects and negotiates.
func dial(ctx context.Context, path string) (*client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
			return nil, fmt.Errorf("%w: no QEMU listens at %s", hypervisor.ErrUnavailable, path)
		}
		if errors.Is(err, syscall.EAGAIN) {
			return nil, fmt.Errorf("%w: a client is connected to QEMU's socket, and others wait for it: %s", hypervisor.ErrBusy, path)
		}
		return nil, err
	}
	c := &client{
		conn: conn.(*net.UnixConn), replies: make(chan reply, 1), gone: make(chan struct{}), closed: make(chan struct{}),
		seen: map[string]int{}, more: make(chan struct{}, 1),
	}
	if err := c.greet(ctx); err != nil {
		close(c.closed)
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *client) greet(ctx context.Context) error {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return errors.Join(err, credErr)
	}
	c.peer = int(cred.Pid)
	c.conn.SetReadDeadline(time.Now().Add(greetingPatience))
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReaderSize(c.conn, 64<<10)
	line, err := readLine(in)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var hello struct {
		QMP struct {
			Version struct {
				QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
			} `json:"version"`
		}
	}
	switch {
	case isTimeout(err):
		return fmt.Errorf("%w: QEMU (process %d) does not greet: another client is connected to this socket, and it "+
			"serves one at a time; close that one, or give QEMU a second -qmp socket", hypervisor.ErrBusy, c.peer)
	case errors.Is(err, io.EOF) && len(line) == 0, errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: QEMU closed the connection", hypervisor.ErrUnavailable)
	case err != nil:
		return err
	}
	if err := json.Unmarshal(line, &hello); err != nil || hello.QMP.Version.QEMU.Major == 0 {
		return fmt.Errorf("no QMP socket: it begins with %.60q", line)
	}
	v := hello.QMP.Version.QEMU
	c.qemu = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	c.conn.SetReadDeadline(time.Time{})
	go c.read(in)
	return c.run(ctx, "qmp_capabilities", nil, nil)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxReply {
			return nil, fmt.Errorf("a reply of more than %d bytes", maxReply)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// read takes apart what QEMU sends until the connection ends.
func (c *client) read(in *bufio.Reader) {
	defer close(c.gone)
	for {
		line, err := readLine(in)
		if err == nil {
			var r reply
			if err = json.Unmarshal(line, &r); err == nil {
				c.pass(r)
				continue
			}
		}
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		return
	}
}

// pass hands a reply to whoever waits for it, or counts an event.
func (c *client) pass(r reply) {
	if r.Event == "" {
		select {
		case c.replies <- r:
		case <-c.closed:
		}
		return
	}
	c.mu.Lock()
	if len(c.seen) < 1000 { // QEMU knows some dozens
		c.seen[r.Event]++
	}
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// lost tells why there is no connection any more.
func (c *client) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("%w: the connection to QEMU (process %d) ended: %w", hypervisor.ErrUnavailable, c.peer, c.err)
}

// run gives a command to QEMU and unpacks what it returns into result, where that isn't nil.
func (c *client) run(ctx context.Context, command string, args, result any) error {
	return c.send(ctx, command, args, result, func(b []byte) error {
		_, err := c.conn.Write(b)
		return err
	})
}

func (c *client) send(ctx context.Context, command string, args, result any, write func([]byte) error) error {
	c.nextID++
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, args, c.nextID})
	if err != nil {
		return err
	}
	c.conn.SetWriteDeadline(time.Now().Add(commandPatience))
	if err := write(append(b, '\n')); err != nil {
		select {
		case <-c.gone:
			return c.lost()
		default:
			return fmt.Errorf("%w: %s: %w", hypervisor.ErrUnavailable, command, err)
		}
	}
	timeout := time.NewTimer(commandPatience)
	defer timeout.Stop()
	for {
		var r reply
		select {
		case r = <-c.replies:
		case <-c.gone:
			// The answer may have been the last that came.
			select {
			case r = <-c.replies:
			default:
				return c.lost()
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			return fmt.Errorf("QEMU (process %d) did not answer %s within %v", c.peer, command, commandPatience)
		}
		switch {
		case r.ID != c.nextID:
			continue // the late answer to a command that was given up
		case r.Error != nil:
			r.Error.Command = command
			return r.Error
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(r.Return, result); err != nil {
			return fmt.Errorf("QEMU's answer to %s: %w", command, err)
		}
		return nil
	}
}

// count tells how often an event came.
func (c *client) count(event string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[event]
}

// await waits until check is content, asking again after each event, and now and then without one.
func (c *client) await(ctx context.Context, check func() (bool, error)) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		if ok, err := check(); ok || err != nil {
			return err
		}
		select {
		case <-c.more:
		case <-tick.C:
		case <-c.gone:
			return c.lost()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *client) Close() error {
	close(c.closed)
	err := c.conn.Close()
	<-c.gone
	return err
}
