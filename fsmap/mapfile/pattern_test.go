package mapfile

import (
	"path"
	"strings"
	"testing"
)

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, path string
		want          Reach
	}{
		{"/etc/passwd", "/", Above},
		{"/etc/passwd", "/etc", Above},
		{"/etc/passwd", "/etc/passwd", Inside},
		{"/etc/passwd", "/etc/passwd/x", Inside},
		{"/etc/passwd", "/etc/passwd-", Outside},
		{"/etc/passwd", "/usr", Outside},
		{"/etc/", "/etc/x", Inside},
		{"//etc/./x", "/etc/x", Inside},
		{"/", "/", Inside},
		{"/", "/any", Inside},
		{"/*", "/any/thing", Inside},
		{"/*.conf", "/a.conf", Inside},
		{"/*.conf", "/d", Outside},
		{"/*/b", "/a", Above},
		{"/*/b", "/a/b/c", Inside},
		{"/*/b", "/a/c", Outside},
		{"/**", "/", Inside},
		{"/**", "/a/b", Inside},
		{"/etc/**", "/etc", Inside},
		{"/etc/**", "/etcetera", Outside},
		{"/**/x", "/x", Inside},
		{"/**/x", "/a/b/x", Inside},
		{"/**/x", "/a/x/b", Inside},
		{"/**/x", "/a/b", Above},
		{"/a/**/b/c", "/a/b/d/b/c", Inside},
		{"/a/**/b/c", "/a/b/d", Above},
		{"/a/**/b/**/c", "/a/x/b/y/c", Inside},
		{"/a/**/b", "/x/b", Outside},
		{"/**/**/x", "/x", Inside},
		{"/[a-c]x", "/bx", Inside},
		{"/[!a-c]x", "/bx", Outside},
		{"/[!a-c]x", "/dx", Inside},
		{"/[^a-c]x", "/dx", Inside},
		{"/[[!]x", "/!x", Inside},
		{"/[a[!]x", "/bx", Outside},
		{`/\*`, "/*", Inside},
		{`/\*`, "/a", Outside},
		{`/\[!x`, "/[!x", Inside},
		{"/?", "/é", Inside},
		{"/a?c", "/abc", Inside},
		{"/.*", "/.x", Inside},
		{"/*", "/.x", Inside},
	} {
		p, err := ParsePatterns([]string{tt.pattern})
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		if got := p.Match(tt.path); got != tt.want {
			t.Errorf("%s on %s: %d, want %d", tt.pattern, tt.path, got, tt.want)
		}
	}
}

func TestPatternErrors(t *testing.T) {
	for _, pattern := range []string{"", "etc", "p2:", "p2:etc", "*.conf", "/a/../b", "/[a", `/a\`, "[:/x", "/" + strings.Repeat("x", MaxPattern)} {
		if _, err := ParsePatterns([]string{pattern}); err == nil {
			t.Errorf("%.40q is taken", pattern)
		}
	}
}

func TestPatternVolumes(t *testing.T) {
	p, err := ParsePatterns([]string{"p2:/etc", "vg0/root:/usr", "p?:/x", "web*/p1:/y"})
	if err != nil {
		t.Fatal(err)
	}
	for volume, want := range map[string]string{
		"p2": "p2:/etc p?:/x", "p1": "p?:/x", "vg0/root": "vg0/root:/usr", "disk": "", "web1/p1": "web*/p1:/y", "a/web1/p1": "",
	} {
		on, ok := p.On(volume)
		if got := strings.Join(on.Texts(), " "); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", volume, got, ok)
		}
	}
	if all, ok := (Patterns{}).On("p1"); !ok || !all.All() || all.Match("/x") != Inside {
		t.Error("no pattern does not select everything")
	}
	var hit []string
	on, _ := p.On("p2")
	on.Hits("/x/y", func(text string) { hit = append(hit, text) })
	if len(hit) != 1 || hit[0] != "p?:/x" {
		t.Errorf("hits %q", hit)
	}
}

// FuzzPatterns: a pattern is refused, or selects consistently: what is inside a selected folder is selected, and what
// leads to something selected is not outside.
func FuzzPatterns(f *testing.F) {
	f.Add("/etc/**/x*", "/etc/a/xy")
	f.Add("p2:/[!a-z]?", "/A1")
	f.Add(`/\*/[\]]`, "/*/]")
	f.Add("/**/b/**/[a-", "/a/b/c")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		p, err := ParsePatterns([]string{pattern})
		if err != nil {
			return
		}
		name = path.Clean("/" + name)
		r := p.Match(name)
		for dir := path.Dir(name); ; dir = path.Dir(dir) {
			up := p.Match(dir)
			if up == Inside && r != Inside {
				t.Fatalf("%q selects %q, but not %q in it", pattern, dir, name)
			}
			if up == Outside && r != Outside {
				t.Fatalf("%q selects something in %q, which is outside", pattern, dir)
			}
			if dir == "/" {
				break
			}
		}
		if !strings.ContainsAny(pattern, `*?[\`) {
			if _, rest, ok := strings.Cut(pattern, ":/"); ok && pattern[0] != '/' {
				pattern = "/" + rest
			}
			if clean := path.Clean(pattern); p.Match(clean) != Inside {
				t.Fatalf("%q does not select itself", clean)
			}
		}
	})
}
