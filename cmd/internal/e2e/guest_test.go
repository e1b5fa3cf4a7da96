package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/agent"
	"vmkit/cmd/internal/boot/boottest"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// patience bounds what an emulated machine may take on a busy host.
const patience = 5 * time.Minute

// TestGuest goes the whole way with a guest that writes to an ext4 and an XFS without end: it is frozen and cloned, and
// the clone is mapped by vmmap itself, by another kernel (--boot), and from inside (--live in the started clone,
// completed by --rebase). All three give the same files, which hold what the guest had said that is on its disks.
func TestGuest(t *testing.T) {
	if os.Getenv("VMKIT_GUEST") == "" {
		t.Skip("VMKIT_GUEST is not set: it boots three emulated machines, which takes a minute or two")
	}
	qemutest.Need(t, "mke2fs", "mkfs.xfs")
	run(t, "", nil, []int{0}, "go", "build", "-buildvcs=false", "-o", bin+"/", "vmkit/cmd/vmfreeze", "vmkit/cmd/vmclone")
	kernel := boottest.Kernel(t)
	dir := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("VMKIT_JOURNAL", t.TempDir())
	shell := func(stdin []byte, line string, args ...string) []byte {
		t.Helper()
		return run(t, dir, stdin, []int{0}, "bash", append([]string{"-c", "set -o pipefail; " + line, "bash"}, args...)...)
	}

	for _, name := range []string{"one", "two"} { // of the latter only the disks are used
		shell(nil, `truncate -s 192M $1-a.raw && mke2fs -q -t ext4 $1-a.raw && truncate -s 320M $1-b.raw && mkfs.xfs -q $1-b.raw &&
			for d in a b; do qemu-img convert -O qcow2 $1-$d.raw $1-$d.qcow2 && rm $1-$d.raw; done`, name)
	}
	guest := &boottest.Console{}
	const told = "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on"
	q := qemutest.Custom(t, guest, dir, "qmp", "control", "-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-m", "256", "-nodefaults",
		"-display", "none", "-no-reboot", "-name", "web1", "-serial", "stdio", "-kernel", kernel,
		"-initrd", boottest.Initrd(t, kernel, []string{"ext4", "xfs"}, bin+"/vmmap"), "-append", told,
		"-qmp", "unix:qmp,server=on,wait=off", "-qmp", "unix:control,server=on,wait=off", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=ga,path=agent,server=on,wait=off", "-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
		"-drive", "if=none,id=hda,format=qcow2,cache=writeback,file=one-a.qcow2", "-device", "virtio-blk-pci,drive=hda",
		"-drive", "if=none,id=hdb,format=qcow2,cache=writeback,file=one-b.qcow2", "-device", "virtio-blk-pci,drive=hdb")
	guest.Await(t, 150)
	before, _ := guest.Synced()
	cloned := shell(nil, `vmfreeze -m snapshot "$1" | vmclone -C clones`, "qmp:"+q.Socket)
	after, _ := guest.Synced()
	guest.Await(t, after+5) // it runs on
	q.Quit()
	clone, _ := filepath.Glob(filepath.Join(dir, "clones/*"))
	if len(clone) != 1 {
		t.Fatalf("clones: %q", clone)
	}
	images := []string{filepath.Join(clone[0], "one-a.qcow2"), filepath.Join(clone[0], "one-b.qcow2")}

	direct := shell(cloned, "vmmap")
	if n := bytes.Count(direct, []byte(`"journal":"replayed"`)); n != 2 {
		t.Errorf("%d of two logs had work", n)
	}
	want, hashes := records(t, direct), extracted(t, dir, direct, shell(direct, "vmextract -C direct"))
	for _, fs := range []string{"ext4", "xfs"} {
		log, err := os.ReadFile(hashes[fs+":/log"].to)
		if err != nil {
			t.Fatal(err)
		}
		if last := boottest.LastRecord(t, log); last < before || last > after+1 {
			t.Errorf("%s: the clone has %d records; before the freeze there were %d, after it %d", fs, last, before, after)
		}
	}
	contents := map[string]bool{}
	for _, f := range hashes {
		contents[f.sum] = true
	}
	if len(contents) < 100 {
		t.Errorf("%d files have only %d contents", len(hashes), len(contents))
	}
	compare := func(how string, m, results []byte) {
		t.Helper()
		same(t, how+": records", records(t, m), want)
		same(t, how+": files", sums(extracted(t, dir, m, results)), sums(hashes))
	}

	begun := time.Now()
	booted := shell(cloned, `vmmap --boot --accel tcg --kernel "$1"`, kernel)
	t.Logf("--boot: a map of %d bytes of %d files in %v", len(booted), len(want), time.Since(begun))
	compare("--boot", booted, shell(booted, "vmextract -C booted"))

	inside := liveMap(t, dir, clone[0], told)
	if bytes.Contains(inside, []byte(`"off":`)) {
		t.Error("the map from inside has offsets in host files")
	}
	rebased := shell(inside, `vmmap --rebase "$1" --rebase "$2"`, images[1], images[0])
	compare("--live", rebased, shell(inside, `vmmap --rebase "$1" --rebase "$2" | vmextract -C live`, images...))
	// The clone's kernel replayed the logs, which changed no file.
	again := shell(cloned, `vmmap "$1" "$2"`, images...)
	compare("after the clone ran", again, shell(again, "vmextract -C again"))

	cmd := exec.Command("vmmap", "--rebase", "two-a.qcow2", "--rebase", "two-b.qcow2")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(inside)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 4 || !regexp.MustCompile(`^vmmap: error: image vda: two-a is another disk: [^\n]*\n$`).Match(out) {
		t.Errorf("other disks of the same sizes: %v: %s", err, out)
	}
}

// liveMap starts a clone with another way to its agent, has the vmmap inside map the file systems, and shuts it down.
func liveMap(t *testing.T, dir, clone, told string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	socket, said := filepath.Join(dir, "inside"), filepath.Join(dir, "console")
	cmd := exec.CommandContext(ctx, filepath.Join(clone, "run.sh"), "-append", strings.Replace(told, "ttyS0", "ttyS1", 1)+" vmkit.idle", "-serial", "file:"+said,
		"-chardev", "socket,id=inside,path="+socket+",server=on,wait=off", "-device", "virtserialport,chardev=inside,name=inside")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended error
	done := make(chan struct{})
	go func() { ended = cmd.Wait(); close(done) }()
	defer func() { cancel(); <-done }()
	fail := func(err error) {
		t.Helper()
		console, _ := os.ReadFile(said)
		t.Fatalf("the clone: %v: %s", err, console)
	}

	begun := time.Now()
	a, err := agent.DialSocket(ctx, socket)
	for ; err != nil; a, err = agent.DialSocket(ctx, socket) { // it boots
		select {
		case <-time.After(100 * time.Millisecond):
		case <-done:
			fail(errors.Join(errors.New("it ended"), ended))
		}
		if ctx.Err() != nil {
			fail(err)
		}
	}
	defer a.Close()
	t.Logf("the clone's agent answers after %v", time.Since(begun))
	begun = time.Now()
	exit, err := a.Exec(ctx, nil, "/vmmap", "--live", "/mnt/vda", "/mnt/vdb")
	if err != nil || exit.Code != 0 || len(exit.Err) > 0 {
		fail(fmt.Errorf("vmmap --live: %v, status %d: %s", err, exit.Code, exit.Err))
	}
	t.Logf("--live: a map of %d bytes in %v", len(exit.Out), time.Since(begun))
	a.Call(ctx, "guest-shutdown", nil, nil) // there is no answer
	<-done
	if ended != nil {
		fail(ended)
	}
	return exit.Out
}

// records reads the records of a map's files, but for what depends on how it was made. It must have no problem.
func records(t *testing.T, m []byte) map[string]string {
	t.Helper()
	files, systems := map[string]string{}, map[int]string{}
	walk(t, m, func(record any) {
		switch x := record.(type) {
		case *mapfile.Volume:
			systems[x.ID] = x.FS
		case *mapfile.File:
			key := systems[x.Volume] + ":" + x.Path
			if _, twice := files[key]; twice {
				t.Errorf("two records of %s", key)
			}
			f := *x
			f.Volume, f.SHA256, f.Extents, f.More, f.Rest = 0, "", nil, false, nil
			files[key] = fmt.Sprintf("%+v", f)
		}
	})
	return files
}

// copied is a file that was extracted.
type copied struct{ to, sum string }

// extracted reads the results of an extraction by a map in dir, and hashes the files that it wrote.
func extracted(t *testing.T, dir string, m, results []byte) map[string]copied {
	t.Helper()
	files, systems := map[string]copied{}, map[string]string{}
	walk(t, m, func(record any) {
		if v, ok := record.(*mapfile.Volume); ok {
			systems[v.Name] = v.FS
		}
	})
	walk(t, results, func(record any) {
		r, ok := record.(*mapfile.Result)
		if !ok || r.Kind != mapfile.Regular {
			return
		}
		to := filepath.Join(dir, r.To)
		b, err := os.ReadFile(to)
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		if err != nil || r.Status != "ok" || r.SHA256 != sum {
			t.Fatalf("%v, sha256 %s: %+v", err, sum, r)
		}
		files[systems[r.Name]+":"+r.Path] = copied{to, sum}
	})
	return files
}

func sums(files map[string]copied) map[string]string {
	m := map[string]string{}
	for path, f := range files {
		m[path] = f.sum
	}
	return m
}

// walk reads a stream of records.
func walk(t *testing.T, stream []byte, take func(record any)) {
	t.Helper()
	for r := mapfile.NewReader(bytes.NewReader(stream)); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := record.(*mapfile.Problem); ok {
			t.Errorf("%+v", p)
		}
		take(record)
	}
}

// same compares two accounts of files.
func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if len(want) < 200 {
		t.Errorf("%s: only %d", what, len(want))
	}
	bad := 0
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] == want[path] {
			continue
		}
		if bad++; bad <= 5 {
			t.Errorf("%s: %s is\n%s, not\n%s", what, path, got[path], want[path])
		}
	}
	if bad > 0 {
		t.Errorf("%s: %d of %d are others", what, bad, len(want))
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: %s is too many", what, path)
		}
	}
}
