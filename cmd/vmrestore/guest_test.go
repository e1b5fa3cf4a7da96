package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// realGuest runs QEMU's own guest agent in a folder that it takes for its root, with this host's programs, and gives
// the folder. blocked are commands that it refuses.
func realGuest(t *testing.T, blocked string) (root, socket string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can put a guest agent into a folder of its own")
	}
	for _, tool := range []string{"qemu-ga", "unshare", "chroot"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s to run a guest agent", tool)
		}
	}
	root = t.TempDir()
	script := `set -e
mkdir -p usr run etc proc dev tmp
touch dev/null
mount --bind -o ro /usr usr
mount --bind /dev/null dev/null
for d in bin sbin lib lib64; do [ -e /$d ] && ln -s usr/$d $d; done
exec chroot . /usr/` + "bin/qemu-ga -m unix-listen -p /run/qga.sock -t /run -f /run/qga.pid"
	if bin, _ := exec.LookPath("qemu-ga"); strings.Contains(bin, "sbin") {
		script = strings.Replace(script, "/usr/bin/qemu-ga", "/usr/sbin/qemu-ga", 1)
	}
	if blocked != "" {
		script += " -b " + blocked
	}
	var out bytes.Buffer
	c := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
	c.Dir, c.Stdout, c.Stderr = root, &out, &out
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Skipf("no mount namespace: %v", err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	socket = filepath.Join(root, "run", "qga.sock")
	for range 100 {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return root, socket
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.Process.Kill()
	c.Wait()
	t.Fatalf("qemu-ga does not come up: %s", out.String())
	return "", ""
}

func TestIntoGuest(t *testing.T) {
	repo := filepath.Join(repository(t, "repo"), "repo")
	root, socket := realGuest(t, "")
	status, out, errs := vmrestore(t, "--repo", repo, "web1@2026-11-20:p2:/etc", "p2:/home", "p2:/usr/bin", "--into", "qga:"+socket)
	if status != 0 || !strings.Contains(out, `"path":"/usr/bin","kind":"directory","to":"/usr/bin","status":"ok","error":"it was there, and stays as it was"`) {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	for path, want := range map[string]string{
		"etc/hostname": "644 0:0 1700000000 guest-1\n", "etc/ssh/sshd_config": "600 0:0 1700000000 ", "home/user/empty": "644 1000:1000 1700000000 ",
	} {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		st, _ := os.Stat(filepath.Join(root, path))
		sys := st.Sys().(*syscall.Stat_t)
		got := fmt.Sprintf("%o %d:%d %d ", st.Mode().Perm(), sys.Uid, sys.Gid, st.ModTime().Unix())
		if !strings.HasPrefix(want, got) || len(want) > len(got) && len(b) == 0 {
			t.Errorf("%s is %q, not %q", path, got, want)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "home/link")); err != nil || to != "../etc/hostname" {
		t.Errorf("the symlink: %q, %v", to, err)
	}
	a, _ := os.Stat(filepath.Join(root, "home/user/numbers.txt"))
	if b, err := os.Stat(filepath.Join(root, "home/user/again.txt")); err != nil || !os.SameFile(a, b) {
		t.Errorf("the hard link: %v", err)
	}
	if st, err := os.Stat(filepath.Join(root, "home/user")); err != nil || st.ModTime().Unix() != 1700000000 {
		t.Errorf("the folder's time: %v", err)
	}

	// Nothing is overwritten unless that is asked for.
	write(t, filepath.Join(root, "etc/hostname"), "another\n")
	status, out, _ = vmrestore(t, "--repo", repo, "web1@2026-11-20:/etc/hostname", "--into", "qga:"+socket)
	if b, _ := os.ReadFile(filepath.Join(root, "etc/hostname")); status != 3 || string(b) != "another\n" || !strings.Contains(out, "--force overwrites") {
		t.Errorf("without --force: status %d, it holds %q: %s", status, b, out)
	}
	status, _, errs = vmrestore(t, "--repo", repo, "web1@2026-11-20:/etc/hostname", "--into", "qga:"+socket, "--force")
	if b, _ := os.ReadFile(filepath.Join(root, "etc/hostname")); status != 0 || string(b) == "another\n" {
		t.Errorf("with --force: status %d, it holds %q: %s", status, b, errs)
	}
	// Below another folder, and through libvirt.
	t.Setenv("VMRESTORE_TEST_AGENT", socket)
	status, out, errs = vmrestore(t, "--repo", repo, "web1@latest:/etc/new", "--into", "libvirt:web1", "--to", "/srv/new place")
	if b, err := os.ReadFile(filepath.Join(root, "srv/new place/etc/new")); status != 0 || string(b) != "newer content\n" {
		t.Errorf("--to, through virsh: status %d, %q, %v: %s%s", status, b, err, out, errs)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "*/.vmrestore-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestIntoGuestNoExec: where the agent runs no programs, content is what is restored.
func TestIntoGuestNoExec(t *testing.T) {
	repo := filepath.Join(repository(t, "repo"), "repo")
	root, socket := realGuest(t, "guest-exec")
	status, out, errs := vmrestore(t, "--repo", repo, "web1@latest:/etc/new", "--into", "qga:"+socket)
	if b, err := os.ReadFile(filepath.Join(root, "etc/new")); status != 0 || string(b) != "newer content\n" {
		t.Errorf("status %d, %q, %v: %s%s", status, b, err, out, errs)
	}
	if !strings.Contains(out, "only the content was restored") || !strings.Contains(errs, "runs no programs") {
		t.Errorf("that is not told: %s%s", out, errs)
	}
	status, out, _ = vmrestore(t, "--repo", repo, "web1@latest:/etc/new", "/etc/ssh", "--into", "qga:"+socket)
	if status != 3 || !strings.Contains(out, "--force overwrites") || !strings.Contains(out, `"path":"/etc/ssh","kind":"directory","to":"/etc/ssh","status":"failed"`) {
		t.Errorf("once more: status %d: %s", status, out)
	}
}

// virsh is a command in virsh's place: it passes what libvirt would on to the agent of VMRESTORE_TEST_AGENT.
func virsh() {
	conn, err := net.Dial("unix", os.Getenv("VMRESTORE_TEST_AGENT"))
	if err != nil || len(os.Args) < 4 || os.Args[2] != "qemu-agent-command" {
		fmt.Fprintln(os.Stderr, "error: ", err)
		os.Exit(1)
	}
	fmt.Fprintln(conn, os.Args[len(os.Args)-1])
	line, _ := bufio.NewReader(conn).ReadString('\n')
	if strings.HasPrefix(line, `{"error"`) {
		var r struct{ Error struct{ Desc string } }
		json.Unmarshal([]byte(line), &r)
		fmt.Fprintf(os.Stderr, "error: internal error: unable to execute QEMU agent command 'x': %s\n", r.Error.Desc)
		os.Exit(1)
	}
	fmt.Print(line)
	os.Exit(0)
}

// TestIntoLiar: a guest that gives back other bytes than it was given is found out.
func TestIntoLiar(t *testing.T) {
	repo := filepath.Join(repository(t, "repo"), "repo")
	socket := filepath.Join(t.TempDir(), "qga.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go liar(l)
	status, out, errs := vmrestore(t, "--repo", repo, "web1@latest:/etc/new", "--into", "qga:"+socket)
	if status != 3 || !strings.Contains(out, "reads back otherwise") {
		t.Errorf("status %d: %s%s", status, out, errs)
	}
	status, _, errs = vmrestore(t, "--repo", repo, "web1@latest:/etc/new", "--into", "qga:"+socket+".not")
	if status != 4 || strings.Count(errs, "\n") != 1 {
		t.Errorf("no agent: status %d: %s", status, errs)
	}
	if status, _, errs = vmrestore(t, "--repo", repo, "web1@latest:/etc/new", "--into", "ssh:x"); status != 4 || !strings.Contains(errs, "neither qga:SOCKET nor libvirt:NAME") {
		t.Errorf("status %d: %s", status, errs)
	}
}

// liar is an agent that runs no programs and whose files end with one byte that is another.
func liar(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	var data []byte
	for in := bufio.NewReader(conn); ; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var r struct {
			Execute   string
			Arguments struct {
				ID   int64
				Mode string
				Buf  []byte `json:"buf-b64"`
			}
		}
		json.Unmarshal(bytes.TrimPrefix(line, []byte{0xff}), &r)
		var answer any = map[string]any{}
		switch r.Execute {
		case "guest-sync-delimited":
			answer = r.Arguments.ID
		case "guest-file-open":
			if r.Arguments.Mode == "r" && data == nil {
				fmt.Fprintln(conn, `{"error":{"class":"GenericError","desc":"No such file or directory"}}`)
				continue
			}
			answer = 1000
		case "guest-file-write":
			data = append(data, r.Arguments.Buf...)
			answer = map[string]any{"count": len(r.Arguments.Buf), "eof": false}
		case "guest-file-read":
			if len(data) > 0 {
				data[len(data)-1] ^= 1
			}
			answer = map[string]any{"count": len(data), "buf-b64": data, "eof": true}
			data = []byte{}
		}
		b, _ := json.Marshal(map[string]any{"return": answer})
		conn.Write(append(b, '\n'))
	}
}
