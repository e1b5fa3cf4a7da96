package repo

import (
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
	set(t, &lockLife, 2*time.Second)
	set(t, &lockRefresh, 300*time.Millisecond)
}

// ShortSteps makes the parts of objects few, and the last ones go through a file.
func ShortSteps(t *testing.T) {
	set(t, &s3Steps, []s3Step{{2, 6 << 20, false}, {2, 6 << 20, false}, {3, 7 << 20, true}})
}
