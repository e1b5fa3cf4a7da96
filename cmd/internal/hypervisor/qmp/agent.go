package qmp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmkit/cmd/internal/agent"
	"vmkit/cmd/internal/hypervisor"
)

const (
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

// dialAgent reaches the guest's agent.
func dialAgent(ctx context.Context, socket string) (*agent.Agent, error) {
	a, err := agent.DialSocket(ctx, socket)
	if errors.Is(err, agent.ErrSilent) {
		err = fmt.Errorf("%w: %w", hypervisor.ErrBusy, err)
	}
	if err != nil {
		return nil, err
	}
	a.Patience = freezePatience
	return a, nil
}

func freezeStatus(ctx context.Context, a *agent.Agent) (status string, err error) {
	err = a.Call(ctx, "guest-fsfreeze-status", nil, &status)
	return status, err
}

// ping makes sure that the agent answers.
func ping(ctx context.Context, socket string) error {
	a, err := dialAgent(ctx, socket)
	if err != nil {
		return err
	}
	return a.Close()
}

// freezeGuest freezes the guest's file systems, unless somebody else has.
func (m *machine) freezeGuest(ctx context.Context, s *hypervisor.Step) error {
	a, err := dialAgent(ctx, s.Args["agent"])
	if err != nil {
		return err
	}
	defer a.Close()
	switch status, err := freezeStatus(ctx, a); {
	case err != nil:
		return err
	case status != "thawed":
		s.Keep("found", status)
		return fmt.Errorf("the guest's file systems are %s already", status)
	}
	var n int
	if err := a.Call(ctx, "guest-fsfreeze-freeze", nil, &n); err != nil {
		return err
	}
	if n == 0 {
		return errors.New("the guest's agent froze no file system")
	}
	m.froze = true
	return nil
}

// thawGuest thaws the guest's file systems, if they are frozen by us.
func (m *machine) thawGuest(ctx context.Context, s *hypervisor.Step) error {
	if s.Args["found"] != "" {
		return nil
	}
	a, err := dialAgent(ctx, s.Args["agent"])
	if err != nil {
		return err
	}
	defer a.Close()
	switch status, err := freezeStatus(ctx, a); {
	case err != nil:
		return err
	case status == "thawed" && m.froze:
		return fmt.Errorf("%w: the guest's file systems were thawed before their time, by somebody else or by the guest (Windows waits 10 seconds)",
			hypervisor.ErrSpoiled)
	case status == "thawed":
		return nil
	}
	m.froze = false
	return a.Call(ctx, "guest-fsfreeze-thaw", nil, nil)
}
