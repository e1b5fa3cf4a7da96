package qmp

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestMergeRanges: whatever is marked stays marked, in order, apart from one another, and within the limit.
func TestMergeRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		var in [][2]int64
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			in = append(in, [2]int64{rapid.Int64Range(0, 1<<20).Draw(t, "off"), rapid.Int64Range(1, 1<<14).Draw(t, "len")})
		}
		out := mergeRanges(slices.Clone(in), limit)
		if len(out) > limit {
			t.Fatalf("%d ranges, the limit is %d", len(out), limit)
		}
		for i := 1; i < len(out); i++ {
			if out[i][0] <= out[i-1][0]+out[i-1][1] {
				t.Fatalf("not apart, or not in order: %v", out)
			}
		}
		for _, r := range in {
			if !slices.ContainsFunc(out, func(o [2]int64) bool { return o[0] <= r[0] && r[0]+r[1] <= o[0]+o[1] }) {
				t.Fatalf("%v is not in %v", r, out)
			}
		}
	})
	if got := mergeRanges([][2]int64{{0, 10}, {10, 5}, {40, 2}}, 5); !slices.Equal(got, [][2]int64{{0, 15}, {40, 2}}) {
		t.Errorf("%v", got)
	}
}
