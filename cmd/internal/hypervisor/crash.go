package hypervisor

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
)

// crashAt names the places at which a process of vmfreeze kills itself, for the tests of what follows: "did stop", or
// "guard undo stop" for its guard.
const crashAt = "VMFREEZE_CRASH_AT"

// Crash is a place at which tests may have the process killed as if from outside.
func Crash(place string) {
	if IsGuard() {
		place = "guard " + place
	}
	if slices.Contains(strings.Split(os.Getenv(crashAt), ","), place) {
		fmt.Fprintf(os.Stderr, "vmfreeze: killed at %q\n", place)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func crash(verb string, s *Step) { Crash(verb + " " + s.Op) }
