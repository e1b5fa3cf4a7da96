// Command vmclone copies the files of a machine under a new name, so that the copy could be started.
package main

import (
	"context"
	"io"
	"os"

	"vmkit/cmd/internal/cli"
)

func main() {
	os.Exit(run(cli.Signals(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return command().Exec(ctx, args, stdin, stdout, stderr)
}
