package verify

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// reader is a library in a child process. When the child dies, of a request that it doesn't survive or of its limits,
// another one is started.
type reader struct {
	ctx  context.Context
	argv []string
	job  job

	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	timer  *time.Timer
	starts int
	gone   bool // no more are started
}

// Limits of what is waited for.
const (
	patience  = 20 * time.Second
	slowRead  = 5 << 20 // bytes in a second: more patience for large files
	maxStarts = 8
)

// start starts a child.
func (r *reader) start() error {
	if r.starts++; r.starts > maxStarts {
		r.gone = true
		return fmt.Errorf("it ended %d times: given up", maxStarts)
	}
	cmd := exec.CommandContext(r.ctx, r.argv[0], r.argv[1:]...)
	cmd.WaitDelay = time.Second
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("second reader: %w", err)
	}
	r.cmd, r.in, r.out = cmd, in, json.NewDecoder(bufio.NewReader(out))
	r.timer = time.AfterFunc(patience, func() { cmd.Process.Kill() })
	reply, err := r.exchange(&r.job, patience)
	if err == nil && reply.Error != "" {
		err = errors.New(reply.Error)
	}
	if err != nil {
		r.gone = true
		r.stop()
	}
	return err
}

func (r *reader) stop() error {
	if r.cmd == nil {
		return nil
	}
	r.timer.Stop()
	r.in.Close()
	r.cmd.Process.Kill()
	err := r.cmd.Wait()
	r.cmd = nil
	return err
}

// exchange sends something and waits for the reply.
func (r *reader) exchange(question any, wait time.Duration) (*reply, error) {
	r.timer.Reset(wait)
	answer := new(reply)
	err := json.NewEncoder(r.in).Encode(question)
	if err == nil {
		err = r.out.Decode(answer)
	}
	if err == nil {
		r.timer.Stop()
		return answer, nil
	}
	late := !r.timer.Stop()
	end := r.stop()
	switch {
	case r.ctx.Err() != nil:
		return nil, r.ctx.Err()
	case late:
		return nil, fmt.Errorf("no answer within %v", wait)
	case end != nil:
		return nil, fmt.Errorf("it ended: %w", end)
	}
	return nil, err
}

// ask asks for something that takes reading size bytes.
func (r *reader) ask(q request, size int64) (*reply, error) {
	if r.cmd == nil {
		if err := r.start(); err != nil {
			return nil, err
		}
	}
	return r.exchange(&q, patience+time.Duration(size/slowRead)*time.Second)
}
