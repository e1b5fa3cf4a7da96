package repo

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// set gives a variable another value for the time of a test.
func set[T any](t *testing.T, v *T, value T) {
	old := *v
	*v = value
	t.Cleanup(func() { *v = old })
}

// Hurry makes retries come at once, and connections count as dead soon.
func Hurry(t *testing.T) {
	set(t, &minio.DefaultRetryUnit, time.Millisecond)
	set(t, &minio.DefaultRetryCap, 20*time.Millisecond)
	set(t, &s3Stall, time.Second)
	set(t, &s3Patience, 5*time.Second)
}

// ShortLocks makes locks live for seconds.
func ShortLocks(t *testing.T) {
	set(t, &lockLife, 3*time.Second)
	set(t, &lockRefresh, 200*time.Millisecond)
}

// ShortSteps makes the parts of objects few, and the last ones go through a file.
func ShortSteps(t *testing.T) {
	set(t, &s3Steps, []s3Step{{2, 6 << 20, false}, {2, 6 << 20, false}, {3, 7 << 20, true}})
}

// memory is an Object in memory.
type memory struct{ *bytes.Reader }

func (memory) Close() error     { return nil }
func (memory) MTime() time.Time { return time.Time{} }

// FindSum looks a cluster up in the text of a .sums file.
func FindSum(text []byte, size, cluster, i, max int64) (Run, bool, error) {
	f := &finder{what: "test", o: memory{bytes.NewReader(text)}, size: size, cluster: cluster, zero: ZeroSum(cluster), blocks: map[int64][]Run{}}
	return f.find(i, max)
}

// ParsePoint takes the text of a point's own file apart, without asking for its hash.
func ParsePoint(b []byte) error {
	if err := unseal(b); err == nil && !json.Valid(b) {
		panic("sealed, and no JSON")
	}
	p := &Point{}
	if err := json.Unmarshal(b, p); err != nil {
		return err
	}
	return p.check(p.Machine, p.Name)
}
