package program

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/drivertest"
)

func TestRun(t *testing.T) {
	drivertest.Program(t, "tool", `
case $2 in
say) echo "$LC_ALL $EXTRA $3"; cat ;;
virsh) echo "error: Failed to start"$'\n'"error: Reason: none" >&2; exit 1 ;;
vbox) printf 'VBoxManage: error: No such thing\nVBoxManage: error: Details: x\n' >&2; exit 1 ;;
vmrun) echo "Error: It is off"; exit 255 ;;
mute) exit 3 ;;
flood) yes | head -c 20000000 ;;
hang) exec sleep 60 ;;
esac`)
	p := &Program{Name: "tool", Args: []string{"-q"}, Env: []string{"EXTRA=more"}}
	out, err := p.Feed(t.Context(), "input", "say", "a b\n\"c\"")
	if want := "C.UTF-8 more a b\n\"c\"\ninput"; err != nil || out != want {
		t.Errorf("%q, want %q: %v", out, want, err)
	}
	for verb, want := range map[string]string{
		"virsh": "Failed to start", "vbox": "tool vbox: No such thing: Details: x", "vmrun": "tool vmrun: It is off", "mute": "exit status 3", "flood": "16777216 bytes",
	} {
		_, err := p.Run(t.Context(), verb)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || errors.Is(err, hypervisor.ErrUnavailable) {
			t.Errorf("%s: %v, want %q", verb, err, want)
		}
		if verb == "vmrun" && (!Said(err, "it is on", "It is off") || Said(err, "nothing")) {
			t.Errorf("Said doesn't know what %v says", err)
		}
	}
	if Said(os.ErrNotExist, "file") {
		t.Error("what is no tool's error was taken for one")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Run(ctx, "hang"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a tool that hangs: %v", err)
	}
	if _, err := (&Program{Name: "no such tool"}).Run(t.Context()); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("a tool that isn't there: %v", err)
	}
}
