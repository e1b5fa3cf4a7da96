package repo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"

	"vmkit/fsmap/mapfile"
)

// sifter drops what a map tells of files that are not asked for, without taking its records apart: of a large guest's
// map, one file is wanted.
type sifter struct {
	in   *bufio.Reader
	all  mapfile.Patterns
	on   map[int]mapfile.Patterns // by volume; none: nothing there is wanted
	skip bool                     // the extents that come
	out  []byte
	err  error
}

// Sift gives the map that in is, without the files that patterns leave out. Folders above those that are left stay. The
// numbers in the end record are those of the whole map.
func Sift(in io.Reader, patterns mapfile.Patterns) io.Reader {
	if patterns.All() {
		return in
	}
	return &sifter{in: bufio.NewReaderSize(in, mapfile.MaxLine+1), all: patterns, on: map[int]mapfile.Patterns{}}
}

func (s *sifter) Read(p []byte) (int, error) {
	for len(s.out) == 0 && s.err == nil {
		line, err := s.in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull): // the reader behind says what is wrong with a line that is too long
			s.out = line
		case err != nil:
			s.out, s.err = line, err
		case s.keep(line):
			s.out = line
		}
	}
	n := copy(p, s.out)
	if s.out = s.out[n:]; len(s.out) == 0 && n == 0 {
		return 0, s.err
	}
	return n, nil
}

var (
	fileLine    = []byte(`{"type":"file","volume":`)
	extentsLine = []byte(`{"type":"extents","volume":`)
	volumeLine  = []byte(`{"type":"volume",`)
	problemLine = []byte(`{"type":"problem",`)
	pathField   = []byte(`,"path":"`)
	base64Field = []byte(`","path_base64":`)
)

// keep tells whether a line stays. What it doesn't understand does.
func (s *sifter) keep(line []byte) bool {
	if rest, ok := bytes.CutPrefix(line, fileLine); ok {
		s.skip = !s.wanted(rest)
		return !s.skip
	}
	if bytes.HasPrefix(line, extentsLine) {
		return !s.skip
	}
	s.skip = false
	if bytes.HasPrefix(line, volumeLine) {
		var v struct {
			ID   int
			Name string
		}
		if json.Unmarshal(line, &v) == nil {
			if on, ok := s.all.On(v.Name); ok {
				s.on[v.ID] = on
			}
		}
	}
	if bytes.HasPrefix(line, problemLine) {
		var p struct {
			Volume int
			Path   string
		}
		if json.Unmarshal(line, &p) == nil && p.Path != "" {
			on, ok := s.on[p.Volume]
			return ok && on.Match(p.Path) == mapfile.Inside
		}
	}
	return true
}

// wanted takes the volume and the path from the text behind fileLine.
func (s *sifter) wanted(rest []byte) bool {
	i := bytes.IndexByte(rest, ',')
	if i < 0 {
		return true
	}
	volume, err := strconv.Atoi(string(rest[:i]))
	name, ok := bytes.CutPrefix(rest[i:], pathField)
	end := bytes.IndexByte(name, '"')
	if err != nil || !ok || end < 0 {
		return true
	}
	on, known := s.on[volume]
	switch {
	case !known:
		return false
	case bytes.IndexByte(name[:end], '\\') >= 0, bytes.HasPrefix(name[end:], base64Field): // not the name as it stands
		return true
	}
	return on.Match(string(name[:end])) != mapfile.Outside
}
