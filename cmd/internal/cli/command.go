package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// Version is set by the linker; a plain `go build` leaves it to the build information.
var Version string

// version gives the version as --version and the map record tell it.
func version() string {
	if Version != "" {
		return Version
	}
	if b, ok := debug.ReadBuildInfo(); ok {
		return cmp.Or(b.Main.Version, "(devel)")
	}
	return "(unknown)"
}

// Tool gives the name and version that a stream says it was made by: "vmmap 0.1.0".
func Tool(name string) string { return name + " " + version() }

// Command is one command.
type Command struct {
	Name  string
	Help  string // what --help prints, written by hand, with examples; CommonHelp and InputHelp are part of it
	Flags *pflag.FlagSet
	Run   func(ctx context.Context, t *Term, args []string) error
	// Grace is how long the command may take to end after it was interrupted, where that is more than a moment.
	Grace time.Duration

	common common
}

type common struct {
	help, version, json bool
	progress            string
}

// CommonHelp is the part of every command's help that tells the options that New defines.
const CommonHelp = `
Common options:
      --json             write records even to a terminal
      --progress WHEN    show progress on stderr: auto (at a terminal), always, never
  -h, --help             show this help
      --version          show the version

Exit status: 0 done, 1 a difference was found, 2 usage, 3 not everything could be done
(each gap is a record and a warning), 4 failed, 5 all is encrypted and no key was given,
130 interrupted.
`

// New makes a command with the options that all commands have.
func New(name, help string) *Command {
	c := &Command{Name: name, Help: help, Flags: pflag.NewFlagSet(name, pflag.ContinueOnError)}
	c.Flags.SortFlags = false
	c.Flags.Usage = func() {}
	c.Flags.BoolVar(&c.common.json, "json", false, "")
	c.Flags.StringVar(&c.common.progress, "progress", "auto", "")
	c.Flags.BoolVarP(&c.common.help, "help", "h", false, "")
	c.Flags.BoolVar(&c.common.version, "version", false, "")
	return c
}

// grace is how long an interrupted command may take to end by itself: it may be waiting for its input or its reader.
const grace = 2 * time.Second

// Exec runs the command with args and gives its exit status.
func (c *Command) Exec(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	t := &Term{Name: c.Name, Stdin: stdin, Stdout: stdout, Stderr: stderr}
	err := c.parse(t, args)
	switch {
	case err != nil:
		t.Error(err)
		t.Hint("%s --help tells how it is used", c.Name)
		return int(Usage)
	case c.common.help:
		return c.print(t, c.Help)
	case c.common.version:
		return c.print(t, Tool(c.Name)+"\n")
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, t, c.Flags.Args()) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(cmp.Or(c.Grace, grace)):
			err = ctx.Err()
		}
	}
	t.close()
	// An interrupted command may trip over what it was doing; the interruption is what counts.
	if err != nil && ctx.Err() != nil {
		err = errInterrupted
	}
	if status := StatusOf(err); status != Done {
		t.Error(err)
		t.Note(status)
		var usage *UsageError
		if errors.As(err, &usage) {
			t.Hint("%s --help tells how it is used", c.Name)
		}
	}
	return int(t.Status())
}

func (c *Command) parse(t *Term, args []string) error {
	if err := c.Flags.Parse(args); err != nil {
		return err
	}
	switch c.common.progress {
	case "auto":
		t.progress = isTerminal(t.Stderr)
	case "always":
		t.progress = true
	case "never":
	default:
		return fmt.Errorf("--progress is auto, always or never, not %q", c.common.progress)
	}
	t.People = isTerminal(t.Stdout) && !c.common.json
	return nil
}

func (c *Command) print(t *Term, text string) int {
	if _, err := io.WriteString(t.Stdout, text); err != nil && !ClosedPipe(err) {
		t.Error(err)
		return int(Failed)
	}
	return int(Done)
}

// Signals gives a context that ends with the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.
// Writing to a closed pipe becomes an error, on stdout too, so that a command can tidy up.
func Signals() context.Context {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // not Ignore: children would inherit that
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	return ctx
}
