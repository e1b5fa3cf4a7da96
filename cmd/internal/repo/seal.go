package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"vmkit/formats/ondisk"
)

// A point's own file ends with the SHA-256 of all that stands before that hash in it. Without it, a bit that turned over
// in a number would go unnoticed: no other file tells what this one holds.
var (
	sealBegin = []byte(",\n \"sha256\": \"")
	sealEnd   = []byte("\"\n}\n")
)

// seal gives the text of a point's own file.
func seal(p *Point) ([]byte, error) {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return nil, err
	}
	b = append(bytes.TrimSuffix(b, []byte("\n}")), sealBegin...)
	sum := sha256.Sum256(b)
	return append(hex.AppendEncode(b, sum[:]), sealEnd...), nil
}

// unseal holds the text of a point's own file against the hash in it.
func unseal(b []byte) error {
	rest, ok := bytes.CutSuffix(b, sealEnd)
	at := len(rest) - 2*sha256.Size
	if !ok || at < 0 || !bytes.HasSuffix(rest[:at], sealBegin) {
		return ondisk.Truncated("point", "it does not end with its hash", -1, nil)
	}
	sum := sha256.Sum256(rest[:at])
	if string(rest[at:]) != hex.EncodeToString(sum[:]) {
		return ondisk.Corrupt("point", "sha256", int64(at), string(rest[at:]))
	}
	return nil
}
