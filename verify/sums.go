package verify

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"vmkit/fsmap/mapfile"
)

// Sums compares a list as sha256sum writes it, in its own form or in BSD's (--tag), with the files that it names.
func Sums(ctx context.Context, in io.Reader, o Options) (Summary, error) {
	r := newRun(ctx, o)
	return r.finish(r.sums(in))
}

// maxSumLine bounds a line of a list: a path and its hash.
const maxSumLine = 3*mapfile.MaxPath + 256

func (r *run) sums(in io.Reader) error {
	named := make(map[uint64]struct{})
	seed := maphash.MakeSeed()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxSumLine)
	n := 0
	for lines.Scan() {
		n++
		sum, name, err := parseSum(lines.Text())
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if sum == "" {
			continue
		}
		path := r.place(name)
		if r.Extra {
			named[maphash.String(seed, filepath.Clean(path))] = struct{}{}
		}
		err = r.submit(func(t *task) {
			t.checked++
			at := mapfile.Finding{Volume: mapfile.None, Path: name}
			st, err := os.Stat(path) // as sha256sum does
			switch {
			case errors.Is(err, fs.ErrNotExist):
				t.diff(at, Missing, path, "nothing")
			case err != nil:
				t.problem(at, "stat", err)
			case !st.Mode().IsRegular():
				t.diff(at, Type, "regular", kindOf(st.Mode()))
			default:
				if real, err := filepath.EvalSymlinks(path); err == nil {
					path = real
				}
				r.content(t, at, path, st.Size(), mapfile.None, sum)
			}
		})
		if err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("line %d: %w", n+1, err)
	}
	if n == 0 {
		return errors.New("the list of sums is empty")
	}
	if !r.Extra {
		return nil
	}
	root := r.Dir
	if root == "" {
		root = "."
	}
	return r.submit(func(t *task) {
		r.extra(t, root, func(path string) bool { _, ok := named[maphash.String(seed, path)]; return ok })
	})
}

var errSum = errors.New("neither HASH  NAME nor SHA256 (NAME) = HASH")

// parseSum takes a line apart; an empty one gives no sum.
func parseSum(line string) (sum, name string, err error) {
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return "", "", nil
	}
	escaped := line[0] == '\\'
	if escaped {
		line = line[1:]
	}
	if rest, ok := strings.CutPrefix(line, "SHA256 ("); ok {
		i := strings.LastIndex(rest, ") = ")
		if i < 0 {
			return "", "", errSum
		}
		name, sum = rest[:i], rest[i+4:]
	} else {
		if len(line) < 67 || line[64] != ' ' || line[65] != ' ' && line[65] != '*' {
			return "", "", errSum
		}
		sum, name = line[:64], line[66:]
	}
	sum = strings.ToLower(sum)
	if b, err := hex.DecodeString(sum); err != nil || len(b) != 32 || name == "" {
		return "", "", errSum
	}
	if escaped {
		name = sumEscapes.Replace(name)
	}
	return sum, name, nil
}

var sumEscapes = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r")
