package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 1, "major": 9}}, "capabilities": []}}` + "\n"

// serve answers one client with f and gives the socket.
func serve(t *testing.T, f func(conn net.Conn, lines *json.Decoder)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err == nil {
			f(conn, json.NewDecoder(conn))
			conn.Close()
		}
	}()
	return path
}

// answer gives the id of the next command.
func answer(lines *json.Decoder) int {
	var c struct{ ID int }
	lines.Decode(&c)
	return c.ID
}

func TestDial(t *testing.T) {
	for name, tt := range map[string]struct {
		serve func(net.Conn, *json.Decoder)
		want  string
		is    error
	}{
		"closed":   {func(net.Conn, *json.Decoder) {}, "closed the connection", hypervisor.ErrUnavailable},
		"not QMP":  {func(c net.Conn, _ *json.Decoder) { fmt.Fprintln(c, "SSH-2.0-OpenSSH_9.2") }, `no QMP socket: it begins with "SSH-2.0-OpenSSH_9.2`, nil},
		"not QEMU": {func(c net.Conn, _ *json.Decoder) { fmt.Fprintln(c, `{"QMP": {}}`) }, "no QMP socket", nil},
		"refused": {func(c net.Conn, l *json.Decoder) {
			fmt.Fprint(c, greeting)
			fmt.Fprintf(c, `{"id": %d, "error": {"class": "GenericError", "desc": "no"}}`+"\n", answer(l))
		}, "QEMU refuses qmp_capabilities: no", nil},
		"ends early": {func(c net.Conn, l *json.Decoder) {
			fmt.Fprint(c, greeting)
			answer(l)
			fmt.Fprint(c, `{"return": `)
		}, "the connection to QEMU", hypervisor.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dial(t.Context(), serve(t, tt.serve))
			if err == nil {
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := dial(ctx, serve(t, func(net.Conn, *json.Decoder) { <-ctx.Done() })); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestReplies: events come between replies, and a late reply is nobody else's.
func TestReplies(t *testing.T) {
	c, err := dial(t.Context(), serve(t, func(c net.Conn, l *json.Decoder) {
		fmt.Fprint(c, greeting)
		fmt.Fprintf(c, `{"id": %d, "return": {}}`+"\n", answer(l))
		first := answer(l)
		second := answer(l)
		fmt.Fprint(c, `{"event": "RESUME", "data": {}}`+"\n")
		fmt.Fprintf(c, `{"id": %d, "return": {"status": "late"}}`+"\n", first)
		fmt.Fprintf(c, `{"event": "RESUME"}`+"\n"+`{"id": %d, "return": {"status": "%s"}}`+"\n", second, strings.Repeat("x", 200000))
		fmt.Fprintf(c, `{"id": %d, "return": "a string"}`+"\n", answer(l))
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.qemu != "9.1.2" || c.peer <= 0 {
		t.Errorf("%s, process %d", c.qemu, c.peer)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.run(ctx, "query-status", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	var s struct{ Status string }
	if err := c.run(t.Context(), "query-status", nil, &s); err != nil || len(s.Status) != 200000 || c.count("RESUME") != 2 {
		t.Errorf("%v, %d bytes, %d events", err, len(s.Status), c.count("RESUME"))
	}
	if err := c.run(t.Context(), "query-status", nil, &s); err == nil {
		t.Error("a string for an object")
	}
	if err := c.run(t.Context(), "query-status", nil, nil); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("after its end: %v", err)
	}
}

func TestCommandLines(t *testing.T) {
	command := []string{
		"qemu-system-x86_64", "-name", "guest=web,,1,debug-threads=on", "-qmp", "unix:a,,b.sock,server=on", "-qmp", "tcp:localhost:4444",
		"-chardev", "socket,id=m0,path=/run/m0,server=on", "-chardev", "socket,id=m1,path=/run/m1", "-chardev", "stdio,id=m2",
		"--mon", "chardev=m0,mode=control", "-mon", "m1", "-mon", "chardev=m2,mode=control", "-pidfile",
	}
	if got := qmpSockets(command); !slices.Equal(got, []string{"a,b.sock", "/run/m0"}) {
		t.Errorf("sockets %q", got)
	}
	if got := machineName(command); got != "web,1" {
		t.Errorf("name %q", got)
	}
	if got := machineName([]string{"qemu", "-name", "plain"}); got != "plain" {
		t.Errorf("name %q", got)
	}
	if got := optionsOf(command, "-pidfile"); got != nil {
		t.Errorf("an option without its value: %q", got)
	}
}

func TestJSONNames(t *testing.T) {
	for text, want := range map[string]string{
		`{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}`:                             "/a",
		`{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sda"}}`:                  "/dev/sda",
		`{"driver":"file","filename":"b"}`:                                                        "b",
		`{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/a"}}`:                  "",
		`{"driver":"raw","size":512,"file":{"driver":"file","filename":"/a"}}`:                    "",
		`{"driver":"raw","file":{"driver":"nbd","server.path":"/s"}}`:                             "",
		`{"driver":"x","file":` + strings.Repeat(`{"file":`, 20) + `{}` + strings.Repeat(`}`, 21): "",
	} {
		var n jsonNode
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		if got := n.file(); got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// TestLibvirts: its sockets are left alone.
func TestLibvirts(t *testing.T) {
	_, err := Driver{}.Open(t.Context(), "/var/lib/libvirt/qemu/domain-1-web/monitor.sock")
	if err == nil || !strings.Contains(err.Error(), "use libvirt:NAME") {
		t.Errorf("%v", err)
	}
}

// TestGone: of a machine whose QEMU ended nothing but taking back is left.
func TestGone(t *testing.T) {
	m, err := Driver{}.Gone(&mapfile.VM{Target: "qmp:/run/q.sock"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Describe(t.Context()); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Error(err)
	}
	if err := m.Undo(t.Context(), &hypervisor.Step{Op: opStop, Args: map[string]string{"qemu": `{"pid":1,"start":0,"boot":"x"}`}}); err != nil {
		t.Error(err)
	}
	self, err := hypervisor.ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(self)
	if err := m.Undo(t.Context(), &hypervisor.Step{Op: opStop, Args: map[string]string{"qemu": string(b)}}); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("QEMU lives, and its socket is gone: %v", err)
	}
	if _, err := (Driver{}).Gone(&mapfile.VM{Target: "vbox:m"}); err == nil {
		t.Error("another driver's machine")
	}
}
