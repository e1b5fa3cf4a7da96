package cli

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Output is where a command writes its stream: stdout, or a file that appears under its name only when it is whole.
type Output struct {
	io.Writer
	// Private keeps the file from others: its content is secret.
	Private bool

	path string
	f    *os.File // nil: stdout, or done
}

// Create opens the output path, "" and "-" being stdout. What exists under that name stays until Commit; nobody else
// can read what is written before that.
func (t *Term) Create(path string) (*Output, error) {
	if path == "" || path == "-" {
		return &Output{Writer: t.Stdout}, nil
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		if st.IsDir() {
			return nil, fmt.Errorf("%s is a folder", path)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0) // a pipe or a device can't appear whole
		if err != nil {
			return nil, err
		}
		return t.keep(&Output{Writer: f, f: f}), nil
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	for i := 0; ; i++ {
		f, err := os.OpenFile(fmt.Sprintf("%s.part%d", path, i), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			return t.keep(&Output{Writer: f, path: path, f: f}), nil
		}
		if !os.IsExist(err) || i >= 1000 {
			return nil, err
		}
	}
}

func (t *Term) keep(o *Output) *Output {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.output = append(t.output, o)
	return o
}

// Commit gives the file its name, with all of its bytes on the disk.
func (o *Output) Commit() error {
	f := o.f
	if f == nil {
		return nil
	}
	o.f = nil
	if o.path == "" {
		return f.Close()
	}
	var err error
	if !o.Private {
		umask := unix.Umask(0o077)
		unix.Umask(umask)
		err = f.Chmod(fs.FileMode(0o666 &^ umask))
	}
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), o.path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(o.path))
}

// syncDir makes a rename last.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Abort removes what was written. After Commit it does nothing.
func (o *Output) Abort() {
	if o.f == nil {
		return
	}
	o.f.Close()
	if o.path != "" {
		os.Remove(o.f.Name())
	}
	o.f = nil
}

// Input opens a stream that is named on the command line, "" and "-" being stdin. The caller closes it.
func (t *Term) Input(path string) (io.ReadCloser, error) {
	if path == "" || path == "-" {
		if isTerminal(t.Stdin) {
			return nil, Usagef("nothing to read: stdin is a terminal")
		}
		return io.NopCloser(t.Stdin), nil
	}
	return os.Open(path)
}
