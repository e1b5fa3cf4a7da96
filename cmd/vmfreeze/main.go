// Command vmfreeze identifies the files of machines, makes them immutable, and holds them so until its reader is done.
package main

import (
	"context"
	"io"
	"os"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/all"
)

func main() {
	if hypervisor.IsGuard() {
		t := &cli.Term{Name: "vmfreeze", Stderr: os.Stderr}
		e := &hypervisor.Engine{Drivers: all.Drivers, By: "guard", Warn: t.Warn}
		os.Exit(hypervisor.RunGuard(e))
	}
	os.Exit(run(cli.Signals(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return command().Exec(ctx, args, stdin, stdout, stderr)
}
