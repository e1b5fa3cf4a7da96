package partition

import (
	"fmt"
	"strconv"
	"strings"

	"vmkit/formats/ondisk"
)

// lvmNode is a section of LVM2's text metadata (libdm's configuration language): names with values, and sections.
type lvmNode struct {
	name     string
	values   map[string]any // int64, float64, string, []any
	sections []*lvmNode     // in the order of the text
}

// Limits of the text. A volume group with 10,000 volumes has some 10 MB of it.
const (
	maxLVMText  = 16 << 20
	maxLVMDepth = 8 // group, logical_volumes, volume, segment: 4
)

func (n *lvmNode) section(name string) *lvmNode {
	for _, s := range n.sections {
		if s.name == name {
			return s
		}
	}
	return nil
}

func (n *lvmNode) text(name string) string { s, _ := n.values[name].(string); return s }

// number gives a value, or 0 where there is none or none from 0 to what can be bytes when counted in sectors.
func (n *lvmNode) number(name string) int64 {
	v, _ := n.values[name].(int64)
	if v < 0 || v > 1<<53 {
		return 0
	}
	return v
}

func (n *lvmNode) list(name string) []any { l, _ := n.values[name].([]any); return l }

// has reports whether a list, a "status" for example, holds a word.
func (n *lvmNode) has(name, word string) bool {
	for _, x := range n.list(name) {
		if x == word {
			return true
		}
	}
	return false
}

// lvmParser reads the text front to back.
type lvmParser struct {
	b   []byte
	pos int
}

// parseLVM reads a whole text, up to its end or a NUL.
func parseLVM(b []byte) (*lvmNode, error) {
	p := &lvmParser{b: b}
	root := &lvmNode{}
	if err := p.body(root, 0); err != nil {
		return nil, err
	}
	return root, nil
}

func (p *lvmParser) bad(what string) error {
	return ondisk.Corrupt("lvm2 metadata", fmt.Sprintf("byte %d of the text: %s", p.pos, what), -1, nil)
}

// next skips blanks and comments and gives the byte that follows, 0 at the end.
func (p *lvmParser) next() byte {
	for p.pos < len(p.b) {
		switch c := p.b[p.pos]; c {
		case ' ', '\t', '\n', '\r':
			p.pos++
		case '#':
			for p.pos < len(p.b) && p.b[p.pos] != '\n' {
				p.pos++
			}
		default:
			return c
		}
	}
	return 0
}

func (p *lvmParser) body(n *lvmNode, depth int) error {
	if depth > maxLVMDepth {
		return p.bad("sections too deep")
	}
	n.values = make(map[string]any)
	for {
		c := p.next()
		switch {
		case c == 0 && depth == 0:
			return nil
		case c == '}' && depth > 0:
			p.pos++
			return nil
		}
		name := p.word()
		if name == "" {
			return p.bad("no name")
		}
		switch p.next() {
		case '{':
			p.pos++
			s := &lvmNode{name: name}
			if err := p.body(s, depth+1); err != nil {
				return err
			}
			n.sections = append(n.sections, s)
		case '=':
			p.pos++
			v, err := p.value(true)
			if err != nil {
				return err
			}
			n.values[name] = v
		default:
			return p.bad("neither = nor { behind " + strconv.Quote(name))
		}
	}
}

// word takes a name: letters, digits and what LVM allows in names of volumes.
func (p *lvmParser) word() string {
	start := p.pos
	for p.pos < len(p.b) {
		c := p.b[p.pos]
		if c != '_' && c != '-' && c != '.' && c != '+' && c != '/' && c != '@' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		p.pos++
	}
	if p.pos-start > 1024 {
		return ""
	}
	return string(p.b[start:p.pos])
}

func (p *lvmParser) value(list bool) (any, error) {
	switch c := p.next(); {
	case c == '"':
		return p.quoted()
	case c == '[' && list:
		p.pos++
		l := []any{}
		for {
			switch p.next() {
			case ']':
				p.pos++
				return l, nil
			case ',':
				p.pos++
				continue
			}
			v, err := p.value(false)
			if err != nil {
				return nil, err
			}
			l = append(l, v)
		}
	}
	w := p.word()
	if n, err := strconv.ParseInt(w, 10, 64); err == nil {
		return n, nil
	}
	if f, err := strconv.ParseFloat(w, 64); err == nil {
		return f, nil
	}
	return nil, p.bad("no value")
}

func (p *lvmParser) quoted() (string, error) {
	var s strings.Builder
	for p.pos++; p.pos < len(p.b); p.pos++ {
		switch c := p.b[p.pos]; c {
		case '"':
			p.pos++
			return s.String(), nil
		case '\\':
			if p.pos++; p.pos < len(p.b) {
				s.WriteByte(p.b[p.pos])
			}
		case 0, '\n':
			return "", p.bad("string without an end")
		default:
			s.WriteByte(c)
		}
	}
	return "", p.bad("string without an end")
}
