package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"vmkit/formats"
)

// maxKey bounds a key file, as cryptsetup does.
const maxKey = 8 << 20

// prompts is how often a passphrase is asked for.
const prompts = 3

// Passphrase gives what asks for secrets: the key file, or the user at the terminal.
func (in *Input) Passphrase(t *Term) (formats.Passphrase, error) {
	asked := map[string]int{}
	if in.KeyFile == "" {
		return func(what string) ([]byte, bool) {
			if asked[what]++; asked[what] > prompts {
				return nil, false
			}
			return t.prompt("passphrase for " + what)
		}, nil
	}
	key, err := readKey(t, in.KeyFile)
	if err != nil {
		return nil, err
	}
	// Most people's key files end with a newline that is no part of the passphrase; a file of random bytes may end
	// with one that is.
	secrets := [][]byte{key}
	if short, ok := bytes.CutSuffix(key, []byte("\n")); ok {
		secrets = [][]byte{short, key}
	}
	return func(what string) ([]byte, bool) {
		n := asked[what]
		asked[what]++
		if n >= len(secrets) {
			return nil, false
		}
		return secrets[n], true
	}, nil
}

func readKey(t *Term, path string) ([]byte, error) {
	r := t.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	key, err := io.ReadAll(io.LimitReader(r, maxKey+1))
	if err == nil && len(key) > maxKey {
		err = fmt.Errorf("%s: a key file has at most %d bytes", path, maxKey)
	}
	return key, err
}

// prompt asks the user at the terminal, where there is one.
func (t *Term) prompt(what string) ([]byte, bool) {
	if !isTerminal(t.Stderr) {
		return nil, false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, false
	}
	defer tty.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bar.clear()
	fmt.Fprintf(tty, "%s: %s: ", t.Name, Printable(what))
	secret, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	return secret, err == nil && len(secret) > 0
}
