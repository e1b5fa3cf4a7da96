// Package clitest is what the tests of all commands share: testscript in process, and the comparison of help, manual
// page and options.
package clitest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"

	"vmkit/cmd/internal/cli"
)

// Main is what TestMain calls: the scripts can then run the commands of that name.
func Main(m *testing.M, commands map[string]func()) { testscript.Main(m, commands) }

// Scripts runs the scripts of a folder. files are put into each script's folder, under the names that they have there.
//
// Besides testscript's own there is the command `exits STATUS COMMAND [ARG]...`.
func Scripts(t *testing.T, dir string, files map[string]string) {
	testscript.Run(t, testscript.Params{
		Dir: dir, RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
		Setup: func(env *testscript.Env) error {
			for name, path := range files {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), b, 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// exits runs a command, which has to end with the given status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND [ARG]...")
	}
	err := ts.Exec(args[1], args[2:]...)
	status := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(status) != args[0] {
		ts.Fatalf("%s ended with status %d, not %s", args[1], status, args[0])
	}
}

var (
	helpLine   = regexp.MustCompile(`^ {2,6}(?:-(\w), )?--([a-z][a-z-]*)(?:[ =\[]|$)`)
	manOption  = regexp.MustCompile(`(?:\\-(\w)[^\n-]{1,12})?\\-\\-([a-z](?:\\?-?[a-z])*)`)
	manSection = regexp.MustCompile(`(?m)^\.SH +"?([A-Z ]+)"?$`)
)

// Docs holds a command's options, its help and its manual page against one another.
func Docs(t *testing.T, c *cli.Command, page string) {
	t.Helper()
	flags := map[string]string{} // name to shorthand
	c.Flags.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags[f.Name] = f.Shorthand
		}
	})
	help := map[string]string{}
	for line := range strings.Lines(c.Help) {
		if m := helpLine.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			help[m[2]] = m[1]
		}
		if len(strings.TrimRight(line, "\n")) > 100 {
			t.Errorf("--help has a line of more than 100 characters: %s", line)
		}
	}
	compare(t, "--help", help, flags)

	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	man := map[string]string{}
	for _, m := range manOption.FindAllStringSubmatch(section(string(b), "OPTIONS"), -1) {
		name := strings.ReplaceAll(m[2], `\-`, "-")
		if _, ok := man[name]; !ok || m[1] != "" {
			man[name] = m[1]
		}
	}
	compare(t, page, man, flags)
	for _, s := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"} {
		if section(string(b), s) == "" {
			t.Errorf("%s has no section %s", page, s)
		}
	}
	for _, code := range []string{"0", "1", "2", "3", "4", "5", "130"} {
		if !regexp.MustCompile(`(?m)^\.B ` + code + `$`).MatchString(section(string(b), "EXIT STATUS")) {
			t.Errorf("%s does not tell exit status %s", page, code)
		}
	}
	for _, word := range []string{"Usage:", "Examples:", "Exit status:"} {
		if !strings.Contains(c.Help, word) {
			t.Errorf("--help has no %q", word)
		}
	}
}

func section(page, name string) string {
	all := manSection.FindAllStringSubmatchIndex(page, -1)
	for i, m := range all {
		if page[m[2]:m[3]] == name {
			if i+1 < len(all) {
				return page[m[1]:all[i+1][0]]
			}
			return page[m[1]:]
		}
	}
	return ""
}

func compare(t *testing.T, where string, told, flags map[string]string) {
	t.Helper()
	for name, short := range flags {
		switch got, ok := told[name]; {
		case !ok:
			t.Errorf("%s does not tell --%s", where, name)
		case got != short:
			t.Errorf("%s has -%s for --%s, the options have -%s", where, got, name, short)
		}
	}
	var extra []string
	for name := range told {
		if _, ok := flags[name]; !ok {
			extra = append(extra, name)
		}
	}
	slices.Sort(extra)
	for _, name := range extra {
		t.Errorf("%s tells --%s, which is no option", where, name)
	}
}
