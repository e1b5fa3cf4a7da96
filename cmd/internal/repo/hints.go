package repo

// ChangedRanges are stretches of disks that somebody says to have changed.
type ChangedRanges struct {
	byDisk map[string][][2]int64
}

// changes gives what is known of the changes of disk n since the parent, from the best source that there is, and its
// name.
func (b *maker) changes(n int) (*ranges, string) {
	return nil, "reread"
}
