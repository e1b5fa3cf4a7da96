package main

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"vmkit/cmd/internal/cli/clitest"
	"vmkit/cmd/internal/clone"
	"vmkit/fsmap/mapfile"
)

func TestMain(m *testing.M) { clitest.Main(m, map[string]func(){"vmclone": main}) }

func TestScripts(t *testing.T) { clitest.Scripts(t, "testdata", nil) }

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmclone.1") }

func TestDescribe(t *testing.T) {
	c := &mapfile.Clone{
		Folder: "out/a\nb", Images: []string{"out/a\nb/d.qcow2"}, Notes: []string{"left behind: x.log (log)"},
		Files: []mapfile.CloneFile{{Method: "reflink", Size: 3 << 30}, {Method: "reflink"}, {Method: "copy", Size: 1}, {Method: "rewritten"}, {Method: "made"}},
	}
	for _, tt := range []struct {
		released *mapfile.Released
		want     string
	}{
		{nil, ""},
		{&mapfile.Released{PauseNS: 23_400_000}, "  the machine stood still for 23ms\n"},
		{&mapfile.Released{}, "  the machine was not stopped\n"},
		{&mapfile.Released{Error: "x"}, ""},
	} {
		var b strings.Builder
		c.Released = tt.released
		describe(&b, c)
		want := `out/a\nb: 5 files, 3.0 GiB, 2 by reflink, 1 copied, 1 rewritten` + "\n" + tt.want + `  disk out/a\nb/d.qcow2` + "\n  left behind: x.log (log)\n"
		if b.String() != want {
			t.Errorf("%s\nwant %s", b.String(), want)
		}
	}
}

// lost is a lease that hangs up after some looks at it.
type lost struct{ looks atomic.Int32 }

func (l *lost) Held() error {
	if l.looks.Add(1) > 2 {
		return clone.ErrReleased
	}
	return nil
}

func (l *lost) Release() error { return nil }

// TestWatch: copying ends when nobody holds the machine any more.
func TestWatch(t *testing.T) {
	l := &lost{}
	ctx, stop := watch(t.Context(), l)
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, clone.ErrReleased) {
		t.Error(err)
	}
	stop()
	ctx, stop = watch(t.Context(), &lost{})
	stop()
	if err := context.Cause(ctx); errors.Is(err, clone.ErrReleased) {
		t.Error(err)
	}
}
