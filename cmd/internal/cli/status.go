package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"vmkit/formats"
)

// Status is an exit status. The values mean the same in every command.
type Status int

const (
	Done        Status = 0
	Differs     Status = 1   // a difference was found
	Usage       Status = 2   // the command line makes no sense
	Gaps        Status = 3   // finished, but not everything could be done
	Failed      Status = 4   // nothing usable was produced
	Locked      Status = 5   // all that was asked for is encrypted, and no key was given
	Interrupted Status = 130 // by a signal
)

// order lists the statuses as they count where several apply.
var order = []Status{Interrupted, Failed, Locked, Usage, Differs, Gaps, Done}

// And gives the one of two statuses that counts.
func (s Status) And(t Status) Status {
	if slices.Index(order, t) < slices.Index(order, s) {
		return t
	}
	return s
}

// UsageError is an error in the command line.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// StatusOf gives the exit status that an error stands for.
func StatusOf(err error) Status {
	var usage *UsageError
	switch {
	case err == nil, ClosedPipe(err):
		return Done
	case errors.Is(err, context.Canceled), errors.Is(err, errInterrupted):
		return Interrupted
	case errors.As(err, &usage):
		return Usage
	case errors.Is(err, formats.ErrEncrypted):
		return Locked
	}
	return Failed
}

var errInterrupted = errors.New("interrupted")

// ClosedPipe tells whether err says that whoever read our output has left. It had what it wanted: that is no failure,
// and not worth a message.
func ClosedPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }
