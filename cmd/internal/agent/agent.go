// Package agent talks to the QEMU guest agent of a running machine: over its socket, or through libvirt, which has that
// socket for itself.
package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"time"
)

const (
	// patience bounds one answer, dialPatience the first.
	patience     = 60 * time.Second
	dialPatience = 5 * time.Second
	// maxReply bounds a line from the agent: what a guest says is not to be trusted.
	maxReply = 16 << 20
)

// Agent is a connection to a guest's agent. It is for one goroutine at a time.
type Agent struct {
	Name     string        // for messages
	Patience time.Duration // bounds one answer; a minute unless it is set
	ask      func(ctx context.Context, request []byte) ([]byte, error)
	end      func() error
}

// ErrSilent is what an agent gives that does not answer.
var ErrSilent = errors.New("it does not answer")

// Refused is the agent's refusal of a command.
type Refused struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Refused) Error() string {
	return fmt.Sprintf("the guest's agent refuses %s: %s", e.Command, e.Desc)
}

// Dial reaches the agent of qga:SOCKET or libvirt:NAME. libvirt's connection is the one that virsh uses.
func Dial(ctx context.Context, target string) (*Agent, error) {
	kind, name, _ := strings.Cut(target, ":")
	switch {
	case name == "":
	case kind == "qga":
		return DialSocket(ctx, name)
	case kind == "libvirt":
		return dialLibvirt(ctx, name)
	}
	return nil, fmt.Errorf("%q is neither qga:SOCKET nor libvirt:NAME", target)
}

// DialSocket reaches the agent behind a socket, which serves one client at a time.
func DialSocket(ctx context.Context, path string) (*Agent, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	in := bufio.NewReader(conn)
	a := &Agent{Name: "qga:" + path, Patience: dialPatience, end: conn.Close}
	// read reads an answer.
	read := func(ctx context.Context) ([]byte, error) {
		line, err := readLine(in)
		if e := ctx.Err(); e != nil {
			return nil, e
		}
		if t := net.Error(nil); errors.As(err, &t) && t.Timeout() {
			err = fmt.Errorf("%w on %s: is it running in the guest, and is nobody else connected to it?", ErrSilent, path)
		}
		return line, err
	}
	a.ask = func(ctx context.Context, request []byte) ([]byte, error) {
		conn.SetDeadline(time.Now().Add(a.Patience))
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if _, err := conn.Write(append(request, '\n')); err != nil {
			return nil, err
		}
		return read(ctx)
	}
	// A client before may have left half a command, which 0xFF ends, and answers that nobody read.
	id := rand.Int64N(1 << 53)
	line, err := a.ask(ctx, fmt.Appendf([]byte{0xff}, `{"execute":"guest-sync-delimited","arguments":{"id":%d}}`, id))
	for err == nil && !bytes.Contains(line, fmt.Appendf(nil, "%d", id)) {
		line, err = read(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	a.Patience = patience
	return a, nil
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxReply {
			return nil, fmt.Errorf("an answer of more than %d bytes", maxReply)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

func dialLibvirt(ctx context.Context, name string) (*Agent, error) {
	virsh, err := exec.LookPath("virsh")
	if err != nil {
		return nil, fmt.Errorf("libvirt is reached through virsh: %w", err)
	}
	a := &Agent{Name: "libvirt:" + name, Patience: patience, end: func() error { return nil }}
	a.ask = func(ctx context.Context, request []byte) ([]byte, error) {
		c := exec.CommandContext(ctx, virsh, "-q", "qemu-agent-command", "--timeout", fmt.Sprint(int(a.Patience.Seconds())), name, string(request))
		out, err := c.Output()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			text := strings.Join(strings.Fields(string(exit.Stderr)), " ")
			// libvirt makes the agent's refusal an error of its own.
			if _, why, ok := strings.Cut(text, "unable to execute QEMU agent command "); ok {
				_, why, _ = strings.Cut(why, ": ")
				return json.Marshal(map[string]any{"error": Refused{Desc: why}})
			}
			return nil, fmt.Errorf("virsh: %s", strings.TrimPrefix(text, "error: "))
		}
		return out, err
	}
	return a, a.Call(ctx, "guest-ping", nil, nil)
}

// Close ends the connection.
func (a *Agent) Close() error { return a.end() }

// Call gives the agent a command.
func (a *Agent) Call(ctx context.Context, command string, args, result any) error {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	line, err := a.ask(ctx, request)
	if err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	var r struct {
		Return json.RawMessage
		Error  *Refused
	}
	switch err := json.Unmarshal(line, &r); {
	case err != nil:
		return fmt.Errorf("guest agent: %s: %w", command, err)
	case r.Error != nil:
		r.Error.Command = command
		return r.Error
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(r.Return, result); err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	return nil
}
