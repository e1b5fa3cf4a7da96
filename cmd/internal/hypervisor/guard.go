package hypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The guard is a process that lets machines go when vmfreeze can't: it was killed, it hangs, or a deadline passed. It
// is vmfreeze itself, started anew with guardEnv set, in a session of its own, so that a terminal's signals don't
// reach it. It holds the lease's write end and the machines' locks too, and talks with vmfreeze over a socket pair,
// whose end is vmfreeze's end.
const guardEnv = "VMFREEZE_GUARD"

const (
	beatEvery = 2 * time.Second
	// hung is the time without a beat after which vmfreeze counts as hung.
	hung = 15 * time.Second
	// late is how long after a deadline the guard waits for vmfreeze to let the machine go by itself.
	late = 3 * time.Second
	// releasing is how long the release of a machine that stands still may take.
	releasing = 2 * time.Minute
	// guardPatience bounds what vmfreeze waits for an answer of its guard.
	guardPatience = 5 * time.Second
)

// message is what vmfreeze tells its guard; the answer is an empty one. A watch carries the machine's lock.
type message struct {
	Op       string `json:"op"` // "watch", "ended", "close", "beat"
	Path     string `json:"path,omitempty"`
	Deadline int64  `json:"deadline,omitempty"` // nanoseconds from now; 0: none
	Stands   bool   `json:"stands,omitempty"`   // the machine stands still for a while: a hang of vmfreeze matters
	Stays    bool   `json:"stays,omitempty"`    // and does so until its release
}

// Guard is vmfreeze's side of its guard.
type Guard struct {
	Process Process

	mu   sync.Mutex
	conn *net.UnixConn
	cmd  *exec.Cmd
	stop chan struct{}
}

// IsGuard tells whether this process was started to be a guard.
func IsGuard() bool { return os.Getenv(guardEnv) != "" }

// StartGuard starts a guard that holds the lease, which may be nil, until it is told to close it.
func StartGuard(lease *os.File) (*Guard, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "guard"), os.NewFile(uintptr(fds[1]), "vmfreeze")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	g := &Guard{conn: conn.(*net.UnixConn), stop: make(chan struct{})}
	g.cmd = exec.Command("/proc/self/exe")
	g.cmd.Args = os.Args[:1]
	g.cmd.Env = append(os.Environ(), guardEnv+"="+strconv.Itoa(os.Getpid()))
	g.cmd.Stderr = os.Stderr
	if lease != nil {
		g.cmd.Stdout = lease
	}
	g.cmd.ExtraFiles = []*os.File{theirs}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := g.cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("guard: %w", err)
	}
	if g.Process, err = ProcessOf(g.cmd.Process.Pid); err == nil {
		err = g.ask(message{Op: "beat"}, nil)
	}
	if err != nil {
		g.Close()
		return nil, err
	}
	go g.beat()
	return g, nil
}

// ask tells the guard something and waits for its answer.
func (g *Guard) ask(m message, lock *os.File) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if lock != nil {
		rights = unix.UnixRights(int(lock.Fd()))
	}
	g.conn.SetDeadline(time.Now().Add(guardPatience))
	if _, _, err = g.conn.WriteMsgUnix(b, rights, nil); err == nil {
		_, err = g.conn.Read(make([]byte, 16))
	}
	if err != nil {
		return fmt.Errorf("the guard (%s) is gone: %w", g.Process, err)
	}
	return nil
}

func (g *Guard) beat() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if g.ask(message{Op: "beat"}, nil) != nil {
				return
			}
		case <-g.stop:
			return
		}
	}
}

// watch has the guard take the machine back if need be.
func (g *Guard) watch(f *Freeze, deadline time.Duration) error {
	m := message{Op: "watch", Path: f.Journal.path, Deadline: deadline.Nanoseconds()}
	for _, s := range f.Journal.Steps {
		m.Stands = m.Stands || s.Holds
		m.Stays = m.Stays || s.Holds && !s.Early
	}
	return g.ask(m, f.lock)
}

// CloseLease has the guard close its end of the lease. A guard that does not answer is ended: that closes it too.
func (g *Guard) CloseLease() {
	if g.ask(message{Op: "close"}, nil) != nil {
		g.cmd.Process.Kill()
		g.cmd.Wait()
	}
}

// ended tells the guard that nothing is left to take back. One that died has nothing left to do either.
func (g *Guard) ended(f *Freeze) { g.ask(message{Op: "ended", Path: f.Journal.path}, nil) }

// Close ends the guard, which takes back what it still watches.
func (g *Guard) Close() {
	close(g.stop)
	g.conn.Close()
	g.cmd.Wait()
}

// watched is a journal that a guard watches.
type watched struct {
	message
	lock *os.File
	at   time.Time // its deadline, or zero
}

// sentry is the guard's own side.
type sentry struct {
	engine *Engine
	conn   *net.UnixConn
	parent int // pidfd
	list   []watched
	beat   time.Time
}

// RunGuard is the guard's main. It gives an exit status.
func RunGuard(e *Engine) int {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTSTP)
	parent, err := strconv.Atoi(os.Getenv(guardEnv))
	if err != nil {
		e.Warn("guard: %v", err)
		return 4
	}
	file := os.NewFile(3, "vmfreeze")
	conn, err := net.FileConn(file)
	if err != nil {
		e.Warn("guard: this is for vmfreeze itself to start: %v", err)
		return 4
	}
	file.Close()
	s := &sentry{engine: e, conn: conn.(*net.UnixConn), parent: -1, beat: time.Now()}
	// Only of a parent that is still there can the number be trusted; else its end is read from the socket at once.
	if fd, err := unix.PidfdOpen(parent, 0); err == nil && os.Getppid() == parent {
		s.parent = fd
	}
	return s.run()
}

func (s *sentry) run() int {
	for {
		m, lock, err := s.receive()
		if err != nil {
			return s.takeOver(err)
		}
		s.beat = time.Now()
		switch m.Op {
		case "watch":
			w := watched{message: m, lock: lock}
			if m.Deadline > 0 {
				w.at = time.Now().Add(time.Duration(m.Deadline))
			}
			s.list = append(s.list, w)
		case "ended":
			for i, w := range s.list {
				if w.Path == m.Path {
					w.lock.Close()
					s.list = append(s.list[:i], s.list[i+1:]...)
					break
				}
			}
		case "close":
			os.Stdout.Close()
			// The release has begun. Having a machine go on takes a moment; putting writes back takes its time.
			for i := range s.list {
				s.list[i].at = time.Time{}
				if s.list[i].Stays {
					s.list[i].at = time.Now().Add(releasing)
				}
			}
		}
		s.conn.Write([]byte("{}"))
	}
}

// errLate says why the guard acts although vmfreeze lives.
var errLate = errors.New("late")

// receive waits for the next message, but not beyond a deadline.
func (s *sentry) receive() (m message, lock *os.File, err error) {
	var until time.Time
	sooner := func(t time.Time) {
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	for _, w := range s.list {
		if w.Stands {
			sooner(s.beat.Add(hung))
		}
		if !w.at.IsZero() {
			sooner(w.at.Add(late))
		}
	}
	s.conn.SetReadDeadline(until)
	b, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, noob, _, _, err := s.conn.ReadMsgUnix(b, oob)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return m, nil, errLate
	case err != nil:
		return m, nil, err
	case n == 0:
		return m, nil, net.ErrClosed
	}
	if list, err := unix.ParseSocketControlMessage(oob[:noob]); err == nil && len(list) > 0 {
		if fds, err := unix.ParseUnixRights(&list[0]); err == nil && len(fds) > 0 {
			unix.CloseOnExec(fds[0])
			lock = os.NewFile(uintptr(fds[0]), "lock")
		}
	}
	return m, lock, json.Unmarshal(b[:n], &m)
}

// takeOver lets go all machines that are watched. vmfreeze has to be dead first: its end of the lease and its
// connection to the hypervisor close with it.
func (s *sentry) takeOver(why error) int {
	if len(s.list) == 0 {
		return 0
	}
	Crash("takes over")
	what := "ended without letting it go"
	if errors.Is(why, errLate) {
		what = "is late in letting it go"
	}
	if s.parent >= 0 {
		if errors.Is(why, errLate) {
			unix.PidfdSendSignal(s.parent, unix.SIGKILL, nil, 0)
		}
		poll := []unix.PollFd{{Fd: int32(s.parent), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(poll, 5000); err != unix.EINTR {
				break
			}
		}
	}
	os.Stdout.Close()
	status := 0
	for _, w := range s.list {
		j, err := s.engine.finish(w.Path)
		if err != nil {
			s.engine.Warn("%v", err)
			status = 4
			continue
		}
		s.engine.Warn("%s: vmfreeze (%s) %s: its guard did", j.VM.Name, j.Owner, what)
	}
	return status
}

// finish takes back what a journal still holds.
func (e *Engine) finish(path string) (*Journal, error) {
	j, err := loadJournal(path)
	if err != nil || j.Ended {
		return j, err
	}
	if m := e.insist(context.Background(), nil, j); m != nil {
		m.Close()
	}
	if !j.Ended {
		return nil, fmt.Errorf("%s: could not be let go: %s; run vmfreeze --recover", j.VM.Name, j.Released.Error)
	}
	return j, nil
}
