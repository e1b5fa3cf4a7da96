package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"vmkit/cmd/internal/hypervisor"
)

const (
	// agentPatience bounds one answer of the guest's agent.
	agentPatience = 5 * time.Second
	// freezePatience bounds freezing and thawing: the guest writes back what it holds in memory first.
	freezePatience = 2 * time.Minute
	// agentPort is the name of the agent's serial port in the guest.
	agentPort = "org.qemu.guest_agent.0"
)

// agentSocket finds the socket of the guest's agent: the one given, or the one behind the agent's port.
func (m *machine) agentSocket(ctx context.Context, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	id := ""
	for _, dev := range m.options("-device") {
		if name, _ := keyOf(dev, "name"); name == agentPort {
			id, _ = keyOf(dev, "chardev")
		}
	}
	var devices []struct{ Label, Filename string }
	if err := m.c.run(ctx, "query-chardev", nil, &devices); err != nil {
		return "", err
	}
	for _, d := range devices {
		// "unix:PATH,server=on", with "disconnected:" before it while nobody is connected.
		path, ok := strings.CutPrefix(strings.TrimPrefix(d.Filename, "disconnected:"), "unix:")
		if ok && d.Label == id {
			return m.resolve(strings.TrimSuffix(strings.TrimSuffix(path, ",server"), ",server=on")), nil
		}
	}
	return "", errors.New("the machine has no port for a guest agent (" + agentPort + "): say where its socket is with --agent")
}

// agent is a connection to the guest's agent. The socket serves one client at a time.
type agent struct {
	conn net.Conn
	in   *bufio.Reader
}

// dialAgent connects and makes sure that what it reads is meant for it: an earlier client may have left answers.
func dialAgent(ctx context.Context, socket string) (*agent, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	a := &agent{conn, bufio.NewReader(conn)}
	id := time.Now().UnixNano() & (1<<53 - 1)
	conn.SetDeadline(time.Now().Add(agentPatience))
	// 0xFF ends whatever half a command the agent may have read.
	if err = a.send("guest-sync-delimited", map[string]int64{"id": id}, true); err == nil {
		err = a.skipTo(id)
	}
	if err != nil {
		conn.Close()
		if isTimeout(err) {
			err = fmt.Errorf("%w: it does not answer on %s: is it running in the guest, and is nobody else connected to it?", hypervisor.ErrBusy, socket)
		}
		return nil, err
	}
	return a, nil
}

func (a *agent) send(command string, args any, delimit bool) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	if delimit {
		b = append([]byte{0xff}, b...)
	}
	_, err = a.conn.Write(append(b, '\n'))
	return err
}

// skipTo reads until the answer to a sync with our number, before which stands 0xFF.
func (a *agent) skipTo(id int64) error {
	for {
		line, err := readLine(a.in)
		if err != nil {
			return err
		}
		if i := bytes.LastIndexByte(line, 0xff); i >= 0 {
			line = line[i+1:]
		}
		var r struct{ Return json.Number }
		d := json.NewDecoder(bytes.NewReader(line))
		if d.Decode(&r) == nil && r.Return.String() == fmt.Sprint(id) {
			return nil
		}
	}
}

// run gives the agent a command.
func (a *agent) run(command string, patience time.Duration, result any) error {
	a.conn.SetDeadline(time.Now().Add(patience))
	if err := a.send(command, nil, false); err != nil {
		return err
	}
	line, err := readLine(a.in)
	if err != nil {
		if isTimeout(err) {
			err = fmt.Errorf("no answer within %v", patience)
		}
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	var r struct {
		Return json.RawMessage
		Error  *struct{ Desc string }
	}
	switch err := json.Unmarshal(line, &r); {
	case err != nil:
		return fmt.Errorf("guest agent: %s: %w", command, err)
	case r.Error != nil:
		return fmt.Errorf("the guest's agent refuses %s: %s", command, r.Error.Desc)
	case result == nil:
		return nil
	}
	return json.Unmarshal(r.Return, result)
}

func (a *agent) status() (status string, err error) {
	err = a.run("guest-fsfreeze-status", agentPatience, &status)
	return status, err
}

// ping makes sure that the agent answers.
func ping(ctx context.Context, socket string) error {
	a, err := dialAgent(ctx, socket)
	if err != nil {
		return err
	}
	return a.conn.Close()
}

// freezeGuest freezes the guest's file systems, unless somebody else has.
func freezeGuest(ctx context.Context, s *hypervisor.Step) error {
	a, err := dialAgent(ctx, s.Args["agent"])
	if err != nil {
		return err
	}
	defer a.conn.Close()
	switch status, err := a.status(); {
	case err != nil:
		return err
	case status != "thawed":
		s.Keep("found", status)
		return fmt.Errorf("the guest's file systems are %s already", status)
	}
	var n int
	if err := a.run("guest-fsfreeze-freeze", freezePatience, &n); err != nil {
		return err
	}
	if n == 0 {
		return errors.New("the guest's agent froze no file system")
	}
	return nil
}

// thawGuest thaws the guest's file systems, if they are frozen by us.
func thawGuest(ctx context.Context, s *hypervisor.Step) error {
	if s.Args["found"] != "" {
		return nil
	}
	a, err := dialAgent(ctx, s.Args["agent"])
	if err != nil {
		return err
	}
	defer a.conn.Close()
	if status, err := a.status(); err != nil || status == "thawed" {
		return err
	}
	return a.run("guest-fsfreeze-thaw", freezePatience, nil)
}
