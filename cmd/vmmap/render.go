package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"vmkit/cmd/internal/cli"
	"vmkit/fsmap/mapfile"
)

// each calls f for every record.
func each(r *mapfile.Reader, f func(record any) error) error {
	for {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(record); err != nil {
			return err
		}
	}
}

// list lists the files as `ls -l` does, each with its volume.
func list(w io.Writer, r *mapfile.Reader) error {
	var names mapfile.Names
	return each(r, func(record any) error {
		f, ok := record.(*mapfile.File)
		if !ok {
			names.See(record)
			return nil
		}
		_, err := fmt.Fprintf(w, "%s %4s %6s %6s %14s %s %s:%s\n", modeString(f), number(f.Links), number(f.UID), number(f.GID),
			sizeOf(f), date(f.MTime), names.Volume(f.Volume), cli.Printable(nameOf(f)))
		return err
	})
}

// bodyfile renders the files as Sleuth Kit's bodyfile 3.x, which mactime reads:
// MD5|name|inode|mode_as_string|UID|GID|size|atime|mtime|ctime|crtime, times in seconds.
func bodyfile(w io.Writer, r *mapfile.Reader) error {
	var names mapfile.Names
	sec := func(t mapfile.Time) int64 {
		if !t.Known {
			return 0
		}
		return t.Sec
	}
	return each(r, func(record any) error {
		f, ok := record.(*mapfile.File)
		if !ok {
			names.See(record)
			return nil
		}
		mode := modeString(f)
		kind := mode[:1]
		if kind == "-" {
			kind = "r"
		}
		name := strings.ReplaceAll(cli.Printable(names.Volume(f.Volume)+":"+nameOf(f)), "|", `\x7c`)
		_, err := fmt.Fprintf(w, "0|%s|%d|%s/%s%s|%d|%d|%d|%d|%d|%d|%d\n", name, f.Inode, kind, kind, mode[1:], max(f.UID, 0), max(f.GID, 0), f.Size,
			sec(f.ATime), sec(f.MTime), sec(f.CTime), sec(f.BTime))
		return err
	})
}

// nameOf gives a file's path with its stream and its target.
func nameOf(f *mapfile.File) string {
	name := f.Path
	if f.Stream != "" {
		name += ":" + f.Stream
	}
	if f.Kind == mapfile.Symlink {
		name += " -> " + f.Target
	}
	return name
}

// modeString renders kind and permissions as ls does.
func modeString(f *mapfile.File) string {
	b := []byte("----------")
	if f.Kind != mapfile.Regular {
		b[0] = byte(f.Kind)
	}
	if f.Mode == mapfile.None {
		copy(b[1:], "?????????")
		return string(b)
	}
	for i, c := range "rwxrwxrwx" {
		if f.Mode>>(8-i)&1 != 0 {
			b[1+i] = byte(c)
		}
	}
	for i, c := range "sst" {
		if f.Mode>>(11-i)&1 != 0 {
			if at := 3 + 3*i; b[at] == 'x' {
				b[at] = byte(c)
			} else {
				b[at] = byte(c) - 'a' + 'A'
			}
		}
	}
	return string(b)
}

func sizeOf(f *mapfile.File) string {
	if f.Kind == mapfile.Char || f.Kind == mapfile.Block {
		return fmt.Sprintf("%d, %d", f.Major, f.Minor)
	}
	return strconv.FormatInt(f.Size, 10)
}

func number(n int64) string {
	if n == mapfile.None {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

func date(t mapfile.Time) string {
	if !t.Known {
		return fmt.Sprintf("%-19s", "-")
	}
	return t.Time().Format("2006-01-02 15:04:05")
}

// table shows images and volumes.
func table(w io.Writer, r *mapfile.Reader) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		for i := range cells {
			if cells[i] = cli.Printable(cells[i]); cells[i] == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	depth := map[int]int{}
	headed := false
	err := each(r, func(record any) error {
		switch x := record.(type) {
		case *mapfile.Map:
			headed = false
		case *mapfile.Image:
			image(w, x)
		case *mapfile.Volume:
			if !headed {
				fmt.Fprintln(w)
				fmt.Fprintln(tw, strings.Join([]string{"VOLUME", "START", "SIZE", "TYPE", "CONTENT", "LABEL", "UUID", "JOURNAL", "USED"}, "\t"))
				headed = true
			}
			if x.In != mapfile.None {
				depth[x.ID] = depth[x.In] + 1
			}
			start, used := "", ""
			if x.Start != mapfile.None {
				start = strconv.FormatInt(x.Start, 10)
			}
			if x.Used != mapfile.None {
				used = cli.Size(x.Used)
			}
			row(strings.Repeat("  ", depth[x.ID])+x.Name, start, cli.Size(x.Size), typeOf(x), x.FS, x.Label, x.UUID, x.Journal, used)
		case *mapfile.End:
			return tw.Flush()
		}
		return nil
	})
	if e := tw.Flush(); err == nil {
		err = e
	}
	return err
}

// image shows an image with its snapshots and bitmaps.
func image(w io.Writer, x *mapfile.Image) {
	fmt.Fprintf(w, "%s: %s, %s (%d bytes), %s\n", cli.Printable(x.Name), x.Format, cli.Size(x.Size), x.Size, x.State)
	if x.Encryption != "" {
		fmt.Fprintf(w, "  encrypted with %s\n", x.Encryption)
	}
	for _, f := range x.Files {
		fmt.Fprintf(w, "  %s file %s, %s\n", f.Role, cli.Printable(f.Path), cli.Size(f.Size))
	}
	for _, s := range x.Snapshots {
		fmt.Fprintf(w, "  snapshot %s %s of %s", cli.Printable(s.ID), cli.Printable(s.Name), strings.TrimSpace(date(s.Date)))
		if s.VMState > 0 {
			fmt.Fprintf(w, ", with %s of machine state", cli.Size(s.VMState))
		}
		fmt.Fprintln(w)
	}
	for _, b := range x.Bitmaps {
		fmt.Fprintf(w, "  bitmap %s of %s blocks, %s\n", cli.Printable(b.Name), cli.Size(b.Granularity), b.State)
	}
	for _, n := range x.Notes {
		fmt.Fprintf(w, "  note: %s\n", cli.Printable(n))
	}
}

// typeOf says what a volume is.
func typeOf(x *mapfile.Volume) string {
	what := x.Type
	if what == "" {
		what = x.TypeID
	}
	if what == "" {
		what = x.Kind
	}
	if x.Scheme != "" {
		what = x.Scheme + " " + what
	}
	if x.PartName != "" {
		what += " " + strconv.Quote(x.PartName)
	}
	return what
}
