package repo_test

import (
	"testing"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
)

func openS3(t *testing.T) repo.Store {
	t.Helper()
	s, err := repo.OpenS3(t.Context(), "s3://"+repotest.Bucket+"/some/where")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestS3(t *testing.T) {
	repotest.Start(t)
	repotest.Suite(t, openS3)
}
