package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hypervisor"
)

// makeMemory makes the file that the machine's memory goes to.
func (m *machine) makeMemory(s *hypervisor.Step) error {
	f, err := os.OpenFile(s.Args["memory"], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// liftLimit lets a migration go as fast as the disk takes it.
func (m *machine) liftLimit(ctx context.Context, s *hypervisor.Step) error {
	var p struct {
		Max *int64 `json:"max-bandwidth"`
	}
	if err := m.c.run(ctx, "query-migrate-parameters", nil, &p); err != nil || p.Max == nil {
		return err
	}
	s.Keep("max-bandwidth", strconv.FormatInt(*p.Max, 10))
	return m.setLimit(ctx, 1<<40)
}

func (m *machine) setLimit(ctx context.Context, n int64) error {
	return m.c.run(ctx, "migrate-set-parameters", map[string]int64{"max-bandwidth": n}, nil)
}

func (m *machine) restoreLimit(ctx context.Context, s *hypervisor.Step) error {
	was, ok := s.Args["max-bandwidth"]
	if !ok {
		return nil
	}
	n, err := strconv.ParseInt(was, 10, 64)
	if err != nil {
		return fmt.Errorf("journal: max-bandwidth: %w", err)
	}
	return m.setLimit(ctx, n)
}

type migration struct {
	Status string `json:"status"`
	Error  string `json:"error-desc"`
}

func (m *machine) migration(ctx context.Context) (mi migration, err error) {
	err = m.c.run(ctx, "query-migrate", nil, &mi)
	return mi, err
}

// saveMemory has the machine, which is stopped, write its memory and the state of its devices to the file. QEMU is
// handed the open file: no shell, no name that it would have to be able to reach.
func (m *machine) saveMemory(ctx context.Context, s *hypervisor.Step) error {
	f, err := os.OpenFile(s.Args["memory"], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	name := "vmfreeze-" + s.Args["run"]
	if err := m.c.runFile(ctx, "getfd", map[string]string{"fdname": name}, f); err != nil {
		return err
	}
	if err := m.c.run(ctx, "migrate", map[string]string{"uri": "fd:" + name}, nil); err != nil {
		return err
	}
	err = m.c.await(ctx, func() (bool, error) {
		mi, err := m.migration(ctx)
		switch {
		case err != nil:
			return false, err
		case mi.Status == "failed", mi.Status == "cancelled":
			return false, fmt.Errorf("migration to a file: %s %s", mi.Status, mi.Error)
		}
		return mi.Status == "completed", nil
	})
	if err != nil {
		return err
	}
	return f.Sync()
}

// endMigration cancels a migration that is under way.
func (m *machine) endMigration(ctx context.Context) error {
	mi, err := m.migration(ctx)
	if err != nil {
		return err
	}
	switch mi.Status {
	case "", "none", "completed", "failed", "cancelled":
		return nil
	}
	if err := m.c.run(ctx, "migrate_cancel", nil, nil); err != nil {
		return err
	}
	return m.c.await(ctx, func() (bool, error) {
		mi, err := m.migration(ctx)
		return mi.Status == "cancelled" || mi.Status == "completed" || mi.Status == "failed", err
	})
}

// runFile gives a command that takes an open file along.
func (c *client) runFile(ctx context.Context, command string, args any, f *os.File) error {
	return c.send(ctx, command, args, nil, func(b []byte) error {
		n, _, err := c.conn.WriteMsgUnix(b, unix.UnixRights(int(f.Fd())), nil)
		if err == nil && n < len(b) {
			return errors.New("short write")
		}
		return err
	})
}
