package mapfile

var fileKinds = [...]struct {
	k FileKind
	s string
}{{Regular, "regular"}, {Directory, "directory"}, {Symlink, "symlink"}, {FIFO, "fifo"}, {Socket, "socket"}, {Char, "char"}, {Block, "block"}}

// String gives the kind's name in a record, or "".
func (k FileKind) String() string {
	for i := range fileKinds {
		if fileKinds[i].k == k {
			return fileKinds[i].s
		}
	}
	return ""
}

// ParseFileKind is the inverse of String; 0 for an unknown name.
func ParseFileKind(s string) FileKind {
	for i := range fileKinds {
		if fileKinds[i].s == s {
			return fileKinds[i].k
		}
	}
	return 0
}
