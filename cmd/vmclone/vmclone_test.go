package main

import (
	"testing"

	"vmkit/cmd/internal/cli/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, map[string]func(){"vmclone": main}) }

func TestScripts(t *testing.T) { clitest.Scripts(t, "testdata", nil) }

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmclone.1") }
