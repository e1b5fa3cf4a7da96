package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// chunk is how many bytes of a file go into one command: coded, they are to fit into an argument of virsh.
const chunk = 48 << 10

// File is an open file of the guest.
type File struct {
	a      *Agent
	ctx    context.Context
	handle int64
	path   string
}

// Open opens a file of the guest; mode is that of fopen.
func (a *Agent) Open(ctx context.Context, path, mode string) (*File, error) {
	f := &File{a: a, ctx: ctx, path: path}
	return f, a.Call(ctx, "guest-file-open", map[string]string{"path": path, "mode": mode}, &f.handle)
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) {
	done := 0
	for part := range slices.Chunk(p, chunk) {
		for len(part) > 0 {
			var r struct{ Count int }
			if err := f.a.Call(f.ctx, "guest-file-write", map[string]any{"handle": f.handle, "buf-b64": part}, &r); err != nil {
				return done, err
			}
			if r.Count <= 0 || r.Count > len(part) {
				return done, fmt.Errorf("%s: the guest wrote %d bytes of %d", f.path, r.Count, len(part))
			}
			done += r.Count
			part = part[r.Count:]
		}
	}
	return done, nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	var r struct {
		Count int
		Buf   []byte `json:"buf-b64"`
		EOF   bool
	}
	if err := f.a.Call(f.ctx, "guest-file-read", map[string]any{"handle": f.handle, "count": min(len(p), chunk)}, &r); err != nil {
		return 0, err
	}
	if len(r.Buf) > len(p) {
		return 0, fmt.Errorf("%s: the guest sends %d bytes, %d were asked for", f.path, len(r.Buf), len(p))
	}
	n := copy(p, r.Buf)
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Close flushes and closes the file.
func (f *File) Close() error {
	at := map[string]int64{"handle": f.handle}
	return errors.Join(f.a.Call(f.ctx, "guest-file-flush", at, nil), f.a.Call(f.ctx, "guest-file-close", at, nil))
}

// Exit is how a program ended in the guest.
type Exit struct {
	Code     int
	Out, Err []byte
}

// Exec runs a program in the guest and waits for its end. input, where it isn't nil, is its standard input.
func (a *Agent) Exec(ctx context.Context, input []byte, path string, args ...string) (Exit, error) {
	start := map[string]any{"path": path, "arg": args, "capture-output": true}
	if input != nil {
		start["input-data"] = input
	}
	var started struct{ PID int64 }
	if err := a.Call(ctx, "guest-exec", start, &started); err != nil {
		return Exit{}, err
	}
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		var r struct {
			Exited   bool
			ExitCode int    `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      []byte `json:"out-data"`
			Err      []byte `json:"err-data"`
		}
		if err := a.Call(ctx, "guest-exec-status", map[string]int64{"pid": started.PID}, &r); err != nil {
			return Exit{}, err
		}
		if r.Exited {
			if r.Signal != 0 {
				return Exit{}, fmt.Errorf("%s in the guest was ended by signal %d", path, r.Signal)
			}
			return Exit{r.ExitCode, r.Out, r.Err}, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Exit{}, ctx.Err()
		}
	}
}

// Allows tells whether the agent knows a command, and its administrator allows it.
func (a *Agent) Allows(ctx context.Context, command string) (bool, error) {
	var info struct {
		Commands []struct {
			Name    string
			Enabled bool
		} `json:"supported_commands"`
	}
	if err := a.Call(ctx, "guest-info", nil, &info); err != nil {
		return false, err
	}
	for _, c := range info.Commands {
		if c.Name == command {
			return c.Enabled, nil
		}
	}
	return false, nil
}
