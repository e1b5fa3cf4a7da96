package formats

import "fmt"

// Layer is what lies below an image and shows where the image itself holds nothing. The zero value is no layer: zeros.
type Layer struct {
	m    Mapper
	size int64
	name string
}

// Nothing is the layer below an image that has none, where that is to show as Missing (see Opener.Unheld). size is the
// size of the image's disk.
func Nothing(size int64) Layer { return Layer{m: absent(size), size: size} }

// OpenLayer opens the layer below img, which the file of names (see Opener.Backing), and adds what there is to say of
// it to img: files, notes, problems, encryption. size is the size of img's disk.
func (o *Opener) OpenLayer(img *Image, of *File, name, format string, size int64) (Layer, error) {
	b, err := o.Backing(of, name, format, size)
	if err != nil {
		return Layer{}, err
	}
	img.Files = append(img.Files, b.Files...)
	img.Problems = append(img.Problems, b.Problems...)
	for _, n := range b.Notes {
		img.Notes = append(img.Notes, name+": "+n)
	}
	if img.Encryption == "" {
		img.Encryption = b.Encryption
	}
	return Layer{m: b.Disk, size: b.Size(), name: name}, nil
}

// ExtentAt gives what shows at off; past the layer's own end that is zeros.
func (l *Layer) ExtentAt(off, max int64) (Extent, error) {
	if l.m == nil || off >= l.size {
		return Extent{Len: max, Kind: Zero, Disk: off}, nil
	}
	e, err := l.m.ExtentAt(off, min(max, l.size-off))
	if err != nil {
		err = fmt.Errorf("%s: %w", l.name, err)
	}
	return e, err
}

// PickLayer chooses among the names that an image has for the layer below it, and others that this may have now: the
// first whose file is the right one, by what the image knows of it. Where none is, it is the first name.
func (o *Opener) PickLayer(of *File, names []string, right func(*File) bool) (name string, found bool) {
	for _, n := range names {
		if f, err := o.Source.Companion(of, n, RoleBacking); err == nil && right(f) {
			return n, true
		}
	}
	return names[0], false
}
