// Package claim keeps directories apart that share blocks: on a damaged or hostile volume a directory can hold itself,
// and many can have a tail in common, so that walking them all would take for ever.
package claim

import "sync"

// Table says which directory each block belongs to, and as which one of its. The zero value is empty. It is safe for
// concurrent use. It grows with the directories that were read.
type Table struct {
	mu sync.Mutex
	m  map[uint64]place
}

type place struct {
	owner uint64
	index int64
}

// Take gives a block to a directory as its index-th. It reports false where it is another's, or has another place in
// this one: then the directory ends here.
func (t *Table) Take(block, owner uint64, index int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	want := place{owner, index}
	if have, ok := t.m[block]; ok {
		return have == want
	}
	if t.m == nil {
		t.m = make(map[uint64]place)
	}
	t.m[block] = want
	return true
}
