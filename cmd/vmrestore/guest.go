package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"strconv"
	"strings"

	"vmkit/cmd/internal/agent"
	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/extract"
	"vmkit/fsmap/mapfile"
)

// intoGuest writes chosen files into a running guest, through its agent: the tar stream of an extraction is unpacked
// there, file by file, and every file is read back.
func (o *options) intoGuest(ctx context.Context, t *cli.Term, s repo.Store, d *disks, patterns mapfile.Patterns) error {
	a, err := agent.Dial(ctx, o.into)
	if err != nil {
		return err
	}
	defer a.Close()
	g := &guest{a: a, ctx: ctx, t: t, to: strings.TrimRight(o.to, "/"), options: o}
	if g.exec, err = g.canExec(); err != nil {
		return err
	}
	if !g.exec {
		t.Warn("%s: its agent runs no programs (guest-exec): owners, modes and times are not restored, and only regular files are, where their folders are there", a.Name)
	}
	var out *cli.Output
	if o.out.Results != "" || !t.People {
		if out, err = t.Create(o.out.Results); err != nil {
			return err
		}
		g.results = mapfile.NewWriter(out)
	}
	x := o.out.Settings(t)
	x.Patterns, x.Open = patterns, d.open
	if x.Keys, err = o.keys(t, d); err != nil {
		return err
	}
	sum, err := g.extract(ctx, t, s, d, x)
	if err != nil {
		return err
	}
	sum.Failed += g.failed
	if err := o.out.Tell(t, sum, false); err != nil {
		return err
	}
	if t.People {
		fmt.Fprintf(t.Stdout, "%d files written into %s, %d bytes; %d left out, %d partial, %d failed\n", g.done, cli.Printable(a.Name), g.bytes, sum.Skipped, sum.Partial, sum.Failed)
	}
	if out == nil {
		return nil
	}
	end := mapfile.End{Kind: mapfile.EndOfResults, OK: g.done, Bytes: g.bytes, Partial: sum.Partial, Failed: sum.Failed, Skipped: sum.Skipped, Problems: sum.Problems}
	if err := g.results.End(&end); err != nil {
		return err
	}
	return out.Commit()
}

// guest is a running guest that files are written into.
type guest struct {
	a       *agent.Agent
	ctx     context.Context
	t       *cli.Term
	options *options
	to      string // the folder that paths begin in; "" is the root
	exec    bool
	results *mapfile.Writer // nil: none are wanted

	dirs                []*tar.Header   // that were made, whose times come last
	there               map[string]bool // folders that are known to be there
	done, failed, bytes int64
}

// canExec tells whether programs can be run in the guest, as they are named on Unix.
func (g *guest) canExec() (bool, error) {
	allowed, err := g.a.Allows(g.ctx, "guest-exec")
	if err != nil || !allowed {
		return false, err
	}
	r, err := g.a.Exec(g.ctx, nil, "/bin/sh", "-c", "exit 42")
	if refused := (*agent.Refused)(nil); errors.As(err, &refused) {
		return false, nil
	}
	return r.Code == 42, err
}

// extract runs the extraction, and takes its stream apart.
func (g *guest) extract(ctx context.Context, t *cli.Term, s repo.Store, d *disks, x extract.Options) (extract.Summary, error) {
	in := d.reader(ctx, t, s, x.Patterns)
	r, w := io.Pipe()
	var sum extract.Summary
	done := make(chan error, 1)
	go func() {
		var err error
		sum, err = extract.ToTar(ctx, in.Reader, w, x)
		if e := in.close(); e != nil && (err == nil || errors.Is(err, e)) {
			err = e
		}
		w.CloseWithError(err)
		done <- err
	}()
	err := g.unpack(tar.NewReader(r))
	r.CloseWithError(err)
	if e := <-done; e != nil && !errors.Is(e, io.ErrClosedPipe) {
		err = e
	}
	return sum, err
}

// unpack takes the members one after another. What befalls one of them is its result; an error ends all.
func (g *guest) unpack(in *tar.Reader) error {
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := g.member(in, h); err != nil {
			return err
		}
	}
	for i := len(g.dirs) - 1; i >= 0; i-- {
		if note := g.attributes(g.place(g.dirs[i].Name), g.dirs[i]); note != "" {
			g.t.Warn("%s: %s", g.place(g.dirs[i].Name), note)
		}
	}
	return nil
}

// place gives where a member goes: its name without the volume's.
func (g *guest) place(name string) string {
	_, rest, _ := strings.Cut(strings.TrimSuffix(name, "/"), "/")
	return g.to + "/" + rest
}

// member writes one member.
func (g *guest) member(in io.Reader, h *tar.Header) error {
	volume, rest, _ := strings.Cut(strings.TrimSuffix(h.Name, "/"), "/")
	to := g.place(h.Name)
	res := mapfile.Result{Volume: mapfile.None, Name: volume, Path: "/" + rest, To: to, Kind: kindOf(h), Status: "ok",
		Size: mapfile.None, Mode: mapfile.None, UID: mapfile.None, GID: mapfile.None}
	var err error
	switch h.Typeflag {
	case tar.TypeReg:
		res.Size = h.Size
		res.SHA256, res.Error, err = g.regular(in, h, to)
	case tar.TypeDir:
		res.Error, err = g.folder(h, to)
	case tar.TypeSymlink:
		err = g.link("-s", h.Linkname, to)
	case tar.TypeLink:
		err = g.link("", g.place(h.Linkname), to)
	case tar.TypeFifo:
		if err = g.script(`mkfifo "$1"`, to); err == nil {
			res.Error = g.attributes(to, h)
		}
	default:
		err = memberError("device node: none is made in a guest")
	}
	var refused *agent.Refused
	var failure *scriptError
	var member memberError
	switch {
	case err == nil:
		g.done++
		g.bytes += max(res.Size, 0)
	case errors.As(err, &refused), errors.As(err, &failure), errors.As(err, &member):
		g.failed++
		res.Status, res.Error = "failed", err.Error()
		g.t.Warn("%s: failed: %s", to, res.Error)
	default:
		return err
	}
	if g.results != nil {
		return g.results.Result(&res)
	}
	return nil
}

// link makes a link, hard or symbolic.
func (g *guest) link(option, target, to string) error {
	if g.options.out.Force {
		option += " -fn"
	}
	if err := g.parents(to); err != nil {
		return err
	}
	return g.script(`ln `+option+` -- "$2" "$1"`, to, target)
}

func kindOf(h *tar.Header) mapfile.FileKind {
	switch h.Typeflag {
	case tar.TypeDir:
		return mapfile.Directory
	case tar.TypeSymlink:
		return mapfile.Symlink
	case tar.TypeFifo:
		return mapfile.FIFO
	}
	return mapfile.Regular
}

// memberError is what keeps one file from being written, and not the others.
type memberError string

func (e memberError) Error() string { return string(e) }

// regular writes a regular file: under another name first, where programs can be run, and then in its place.
func (g *guest) regular(in io.Reader, h *tar.Header, to string) (sum, note string, err error) {
	at := to
	if g.exec {
		at = path.Join(path.Dir(to), fmt.Sprintf(".vmrestore-%016x", rand.Uint64()))
		if err := g.parents(to); err != nil {
			return "", "", err
		}
	} else if !g.options.out.Force {
		if f, err := g.a.Open(g.ctx, to, "r"); err == nil {
			f.Close()
			return "", "", memberError("it is there; --force overwrites it")
		}
	}
	h256 := sha256.New()
	if err = g.write(io.TeeReader(in, h256), at); err == nil {
		sum = hex.EncodeToString(h256.Sum(nil))
		err = g.compare(at, sum)
	}
	if !g.exec {
		return sum, "only the content was restored", err
	}
	if err == nil {
		note = g.attributes(at, h)
		move := `if ln "$1" "$2"; then rm "$1"; else exit 1; fi`
		if g.options.out.Force {
			move = `mv -f "$1" "$2"`
		}
		if err = g.script(move, at, to); err != nil && !g.options.out.Force {
			err = fmt.Errorf("%w; --force overwrites a file that is there", err)
		}
	}
	if err != nil {
		g.script(`rm -f "$1"`, at)
	}
	return sum, note, err
}

// write writes the content of a file of the guest.
func (g *guest) write(in io.Reader, to string) error {
	f, err := g.a.Open(g.ctx, to, "w")
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, in, make([]byte, 1<<20))
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// compare reads a file of the guest back.
func (g *guest) compare(name, sum string) error {
	f, err := g.a.Open(g.ctx, name, "r")
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 1<<20)); err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) != sum {
		return memberError("it reads back otherwise than it was written")
	}
	return nil
}

// folder makes a folder. One that is there stays as it is.
func (g *guest) folder(h *tar.Header, to string) (note string, err error) {
	err = g.script(`[ -d "$1" ] && exit 9; mkdir -p "$1"`, to)
	if e := (*scriptError)(nil); errors.As(err, &e) && e.code == 9 {
		return "it was there, and stays as it was", nil
	}
	if err == nil {
		g.dirs = append(g.dirs, h)
		note = g.attributes(to, h)
	}
	return note, err
}

// attributes sets what the guest lets be set, and tells what not. It is one program: starting one takes long.
func (g *guest) attributes(to string, h *tar.Header) (note string) {
	owner := fmt.Sprintf("%d:%d", h.Uid, h.Gid)
	if g.options.out.NoOwner {
		owner = ""
	}
	err := g.script(`r=0
try() { what=$1; shift; e=$("$@" 2>&1) || { echo "$what: $e;" >&2; r=1; }; }
[ -z "$2" ] || try owner chown "$2" "$1"
try mode chmod "$3" "$1"
touch -m -d "@$4.$5" "$1" 2>/dev/null || try time touch -m -d "@$4" "$1"
exit $r`, to, owner, strconv.FormatInt(h.Mode&0o7777, 8), strconv.FormatInt(h.ModTime.Unix(), 10), fmt.Sprintf("%09d", h.ModTime.Nanosecond()))
	var notes []string
	if err != nil {
		notes = append(notes, strings.TrimSuffix(err.Error(), ";"))
	}
	for name := range h.PAXRecords {
		if strings.HasPrefix(name, "SCHILY.xattr.") {
			notes = append(notes, "extended attributes are not restored")
			break
		}
	}
	return strings.Join(notes, "; ")
}

// parents makes the folders that a path lies in.
func (g *guest) parents(to string) error {
	dir := path.Dir(to)
	if g.there[dir] {
		return nil
	}
	err := g.script(`mkdir -p "$1"`, dir)
	if g.there == nil || len(g.there) > 10000 {
		g.there = map[string]bool{}
	}
	g.there[dir] = err == nil
	return err
}

// scriptError is a program in the guest that failed.
type scriptError struct {
	code int
	text string
}

func (e *scriptError) Error() string { return e.text }

// script runs a shell script in the guest.
func (g *guest) script(text string, args ...string) error {
	if !g.exec {
		return memberError("its agent runs no programs")
	}
	r, err := g.a.Exec(g.ctx, nil, "/bin/sh", append([]string{"-c", text, "sh"}, args...)...)
	if err != nil || r.Code == 0 {
		return err
	}
	said := strings.Join(strings.Fields(string(r.Err)), " ")
	if said == "" {
		said = fmt.Sprintf("status %d", r.Code)
	}
	return &scriptError{r.Code, said}
}
