package live

import (
	"errors"
	"reflect"
	"testing"
)

// The lines are those of a machine with a root, a home below it that is a btrfs subvolume, a folder bound elsewhere, a
// share of the network and a stick whose mount point has a space in its name.
const mountinfo = `22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw,errors=remount-ro
25 22 0:22 / /proc rw,nosuid shared:12 - proc proc rw
31 22 0:40 /@home /home rw,relatime shared:20 master:3 - btrfs /dev/sda3 ro,space_cache=v2,subvolid=257,subvol=/@home
32 22 8:2 /srv/www /var/www ro,relatime - ext4 /dev/sda2 rw
33 22 0:50 / /net rw - nfs4 host:/x rw
34 22 8:17 / /media/my\040stick rw - vfat /dev/sdb1 rw
35 31 0:51 / /home/tmp rw - tmpfs tmpfs rw
36 31 8:33 / /home/hidden rw - xfs /dev/sdc1 rw
`

func TestParseMounts(t *testing.T) {
	list, err := parseMounts(mountinfo)
	if err != nil || len(list) != 8 {
		t.Fatalf("%d mounts: %v", len(list), err)
	}
	for i, want := range map[int]mount{
		0: {22, "8:2", "/", "/", "ext4", "/dev/sda2", false},
		2: {31, "0:40", "/@home", "/home", "btrfs", "/dev/sda3", true},
		5: {34, "8:17", "/", "/media/my stick", "vfat", "/dev/sdb1", false},
	} {
		if list[i] != want {
			t.Errorf("%+v, want %+v", list[i], want)
		}
	}
	for _, bad := range []string{"22 1 8:2 / /", "x 1 8:2 / / rw - ext4 /dev/sda2 rw\n", "22 1 8:2 / / rw - ext4\n"} {
		if _, err := parseMounts(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestFind(t *testing.T) {
	all, err := parseMounts(mountinfo)
	if err != nil {
		t.Fatal(err)
	}
	// holds takes the mount with the longest point above the path; /home/hidden is hidden by what lies on /home.
	holds := func(path string) (int, error) {
		best := -1
		for i, m := range all {
			if under(path, m.point) && m.id != 36 && (best < 0 || len(m.point) > len(all[best].point)) {
				best = i
			}
		}
		if best < 0 {
			return 0, errors.New("no mount")
		}
		return all[best].id, nil
	}
	for _, tt := range []struct {
		paths []string
		want  map[string][]string // paths by device
		err   bool
	}{
		{[]string{"/"}, map[string][]string{"8:2": {"/", "/srv/www"}, "0:40": {"/@home"}, "8:17": {"/"}}, false},
		{[]string{"/etc"}, map[string][]string{"8:2": {"/etc"}}, false},
		{[]string{"/home/me", "/var/www"}, map[string][]string{"0:40": {"/@home/me"}, "8:2": {"/srv/www"}}, false},
		{[]string{"/media"}, map[string][]string{"8:2": {"/media"}, "8:17": {"/"}}, false},
		{[]string{"/proc/1"}, nil, true},
		{[]string{"/net"}, nil, true},
	} {
		list, err := find(all, tt.paths, holds)
		if (err != nil) != tt.err {
			t.Errorf("%v: %v", tt.paths, err)
		}
		var got map[string][]string
		for _, s := range list {
			if got == nil {
				got = map[string][]string{}
			}
			got[s.mounts[0].dev] = s.paths
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.paths, got, tt.want)
		}
	}
}

func TestLiterals(t *testing.T) {
	s := &system{paths: []string{`/a[1]*\b`, "/c"}}
	p, err := s.patterns()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{`/a[1]*\b`: true, `/a[1]*\b/x`: true, "/a1xb": false, "/c/d": true, "/d": false} {
		if got := p.Match(path) == 2; got != want {
			t.Errorf("%s is selected: %v", path, got)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add(mountinfo)
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseMounts(text)
		if err != nil {
			return
		}
		for _, m := range list {
			find(list, []string{m.point}, func(string) (int, error) { return m.id, nil })
		}
	})
}
