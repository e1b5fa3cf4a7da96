package claim

import "testing"

func TestTake(t *testing.T) {
	var c Table
	for _, test := range []struct {
		block, owner uint64
		index        int64
		want         bool
	}{
		{10, 1, 0, true},
		{11, 1, 1, true},
		{10, 1, 0, true},  // read once more
		{10, 2, 0, false}, // another's
		{11, 1, 2, false}, // a loop
		{12, 2, 0, true},
	} {
		if got := c.Take(test.block, test.owner, test.index); got != test.want {
			t.Errorf("block %d as number %d of %d: %v", test.block, test.index, test.owner, got)
		}
	}
}
