package formats

import (
	"fmt"

	"vmkit/formats/ondisk"
)

// Finding is a fault in an image's own structure.
type Finding struct {
	What            string // "leak", "refcount", "copied", "overlap", "entry", "table", …
	File            *File  // the host file that it lies in
	Off             int64  // position of what is faulty in it, or NoPos
	Expected, Found string // either may be empty
	// Leak says that only space is lost: everything reads as it should.
	Leak bool
}

// Check opens the image that the user named and has its format check its structure, without changing it. It gives the
// name of the format. An error means that the check could not be made, or not to its end.
func (o *Opener) Check(name string, report func(Finding)) (format string, err error) {
	o.start()
	f, err := o.Source.Open(name)
	if err != nil {
		return "", err
	}
	o.number(f, RoleTop)
	t, _, err := o.choose(f, o.Format)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if t.Check == nil {
		return t.Name, fmt.Errorf("%s: %w", name, ondisk.Unsupported("image format "+t.Name, "it has no structure to check", -1, nil))
	}
	layer := *o
	layer.chain = []string{f.Key}
	if err := t.Check(f, &layer, report); err != nil {
		return t.Name, fmt.Errorf("%s: %w", name, err)
	}
	return t.Name, nil
}
