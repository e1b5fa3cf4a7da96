// Package cli is what every command of vmkit does alike: options and help, messages, progress, exit status, the streams
// it reads and writes, how it ends when it is interrupted, and how it opens images.
//
// A command is a [Command]: its options, its help, and a function. A main is three lines:
//
//	func main() {
//		os.Exit(run(cli.Signals(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
//	}
//
//	func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
//		return command().Exec(ctx, args, stdin, stdout, stderr)
//	}
package cli
