package mapfile

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Patterns selects files by their paths. A pattern is a shell glob that begins with '/', on every volume, or on one:
// "p2:/etc/**". '*' and '?' match within a component, '[…]' too; a component "**" matches any number of components.
// What matches brings what is in it. The zero value selects everything.
type Patterns struct{ list []pattern }

type pattern struct {
	text   string
	volume string      // glob of the volume's name, or empty
	parts  []component // of the path
}

// component matches one component of a path.
type component struct {
	any     bool // "**"
	literal bool // text holds no special character
	text    string
}

// MaxPattern bounds a pattern's length.
const MaxPattern = 4096

// Reach says what a folder has to do with a selection.
type Reach uint8

const (
	Outside Reach = iota // neither it nor anything in it is selected
	Above                // something in it may be
	Inside               // it is selected, with all that is in it
)

// ParsePatterns reads patterns as users write them.
func ParsePatterns(texts []string) (Patterns, error) {
	var p Patterns
	for _, t := range texts {
		x, err := parsePattern(t)
		if err != nil {
			return Patterns{}, fmt.Errorf("pattern %q: %w", t, err)
		}
		p.list = append(p.list, x)
	}
	return p, nil
}

func parsePattern(text string) (pattern, error) {
	p := pattern{text: text}
	if len(text) > MaxPattern {
		return p, fmt.Errorf("longer than %d bytes", MaxPattern)
	}
	rest := text
	if i := strings.Index(text, ":/"); i > 0 && text[0] != '/' {
		volume, err := glob(text[:i])
		if err != nil {
			return p, err
		}
		p.volume, rest = volume, text[i+1:]
	}
	if !strings.HasPrefix(rest, "/") {
		return p, errors.New("neither /PATH nor VOLUME:/PATH")
	}
	for part := range strings.SplitSeq(rest, "/") {
		switch part {
		case "", ".":
		case "..":
			return p, errors.New(`".." is not followed`)
		case "**":
			if n := len(p.parts); n == 0 || !p.parts[n-1].any {
				p.parts = append(p.parts, component{any: true})
			}
		default:
			g, err := glob(part)
			if err != nil {
				return p, err
			}
			p.parts = append(p.parts, component{literal: !strings.ContainsAny(g, `*?[\`), text: g})
		}
	}
	return p, nil
}

// glob checks a glob and gives it as path.Match wants it: a shell has "[!a]" for "[^a]".
func glob(text string) (string, error) {
	class := false
	for i := 0; i < len(text)-1; i++ {
		switch c := text[i]; {
		case c == '\\':
			i++
		case class:
			class = c != ']'
		case c == '[':
			class = true
			if text[i+1] == '!' {
				text = text[:i+1] + "^" + text[i+2:]
			}
		}
	}
	_, err := path.Match(text, "")
	if err != nil {
		err = fmt.Errorf("%q is no glob", text)
	}
	return text, err
}

// All reports whether everything is selected.
func (p Patterns) All() bool { return len(p.list) == 0 }

// Texts gives the patterns as they were written.
func (p Patterns) Texts() []string {
	var texts []string
	for i := range p.list {
		texts = append(texts, p.list[i].text)
	}
	return texts
}

// On gives the patterns that may select something on a volume; no if there are none, and nothing on it is selected.
func (p Patterns) On(volume string) (on Patterns, ok bool) {
	if p.All() {
		return p, true
	}
	for _, x := range p.list {
		if x.volume != "" {
			if hit, _ := path.Match(x.volume, volume); !hit {
				continue
			}
		}
		on.list = append(on.list, x)
	}
	return on, len(on.list) > 0
}

// Match tells what the patterns, which On gave, say of a path.
func (p Patterns) Match(name string) Reach {
	if p.All() {
		return Inside
	}
	best := Outside
	for i := range p.list {
		if r := reach(p.list[i].parts, name); r > best {
			best = r
		}
	}
	return best
}

// Hits calls f with the text of each pattern that selects a path.
func (p Patterns) Hits(name string, f func(text string)) {
	for i := range p.list {
		if reach(p.list[i].parts, name) == Inside {
			f(p.list[i].text)
		}
	}
}

// reach matches a path against a pattern's components. Where the pattern ends first, a folder above was selected.
func reach(parts []component, name string) Reach {
	name = strings.TrimPrefix(name, "/")
	best := Outside
	// Behind a "**" the rest of the pattern is tried at each component; the last "**" is the one to go back to.
	star, starName := -1, ""
	for i := 0; ; {
		if i == len(parts) || name == "" && parts[i].any && i == len(parts)-1 {
			return Inside
		}
		if name == "" {
			return Above
		}
		if parts[i].any {
			star, starName, best = i, name, Above
			i++
			continue
		}
		first, rest, _ := strings.Cut(name, "/")
		if parts[i].match(first) {
			i, name = i+1, rest
			continue
		}
		if star < 0 {
			return best
		}
		_, starName, _ = strings.Cut(starName, "/")
		i, name = star+1, starName
		if name == "" {
			return best
		}
	}
}

func (c *component) match(name string) bool {
	if c.literal {
		return c.text == name
	}
	ok, _ := path.Match(c.text, name)
	return ok
}
