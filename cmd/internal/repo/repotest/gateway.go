// Package repotest is what tests of the repository and of the commands on it share: a real S3 server on loopback, a
// proxy that makes its answers go wrong, and the suite that every Store passes.
package repotest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gatewayModule is the S3 server: it serves a folder. It is built by `go install`, outside this module.
const (
	gatewayModule  = "github.com/versity/versitygw/cmd/versitygw"
	gatewayVersion = "v1.8.0"
)

// Bucket is the bucket that a Gateway has.
const Bucket = "backups"

// Who uses a Gateway.
const (
	access = "tester"
	secret = "tester-secret"
	region = "us-east-1"
)

// Gateway is a running S3 server.
type Gateway struct {
	Addr string // host:port
	Dir  string // where the bucket's objects lie as files
}

// Start runs an S3 server for the time of a test, and sets the environment so that S3 programs find it.
func Start(t testing.TB) *Gateway {
	t.Helper()
	program := gateway(t)
	root := t.TempDir()
	g := &Gateway{Dir: filepath.Join(root, Bucket)}
	if err := os.Mkdir(g.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(g.Dir, "user.vmkit", []byte("x"), 0); err != nil {
		t.Skipf("no S3 server to test with: it needs extended attributes in %s: %v", root, err)
	}
	for range 3 { // another process may take the port in between
		if g.run(t, program, root) {
			g.Point(t, g.Addr)
			return g
		}
	}
	t.Fatal("versitygw does not come up")
	return nil
}

// Point sets the environment so that S3 programs talk to addr.
func (g *Gateway) Point(t testing.TB, addr string) {
	for name, value := range g.Env(addr) {
		t.Setenv(name, value)
	}
}

// Env gives the variables that make S3 programs talk to addr.
func (g *Gateway) Env(addr string) map[string]string {
	return map[string]string{
		"AWS_ENDPOINT_URL": "http://" + addr, "AWS_ENDPOINT_URL_S3": "", "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret,
		"AWS_SESSION_TOKEN": "", "AWS_REGION": region, "AWS_PROFILE": "", "AWS_CA_BUNDLE": "", "AWS_CONFIG_FILE": "/nonexistent",
	}
}

func (g *Gateway) run(t testing.TB, program, root string) bool {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.Addr = l.Addr().String()
	l.Close()
	var out strings.Builder
	c := exec.Command(program, "--access", access, "--secret", secret, "--port", g.Addr, "--quiet",
		"posix", root)
	c.Stdout, c.Stderr = &out, &out
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		c.Wait()
		close(done)
	}()
	for range 100 {
		if conn, err := net.Dial("tcp", g.Addr); err == nil {
			conn.Close()
			t.Cleanup(func() {
				c.Process.Kill()
				<-done
			})
			return true
		}
		select {
		case <-done:
			t.Logf("versitygw: %s", out.String())
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
	c.Process.Kill()
	<-done
	return false
}

// gateway gives the server's program: $VERSITYGW, or one that is built once and kept in the user's cache.
var gateway = func() func(testing.TB) string {
	find := sync.OnceValues(build)
	return func(t testing.TB) string {
		t.Helper()
		program, err := find()
		if err != nil {
			t.Skipf("no S3 server to test with: %v", err)
		}
		return program
	}
}()

func build() (string, error) {
	if program := os.Getenv("VERSITYGW"); program != "" {
		return exec.LookPath(program)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "vmkit-tests", "versitygw-"+gatewayVersion)
	program := filepath.Join(dir, "versitygw")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Tests of several packages run at once.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	c := exec.Command("go", "install", gatewayModule+"@"+gatewayVersion)
	c.Dir, c.Env = dir, append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := c.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("go install %s@%s: %w: %s", gatewayModule, gatewayVersion, err, lines[len(lines)-1])
	}
	return program, nil
}
