package cli

import (
	"sync"

	"vmkit/formats/codec"
	"vmkit/fsmap/mapfile"
)

// Keyring finds the keys of a map that is read, which never holds them: the images that it names are opened for that,
// when the first key is wanted.
type Keyring struct {
	in     *Input
	t      *Term
	once   sync.Once
	names  []string
	images *Images
	keys   codec.Keys
}

// Keyring gives a Keyring that opens images as the options say. Without --key-file it has no keys.
func (in *Input) Keyring(t *Term) *Keyring { return &Keyring{in: in, t: t} }

// See takes note of an image of the map.
func (k *Keyring) See(m *mapfile.Image) {
	if len(m.Files) > 0 {
		k.names = append(k.names, m.Files[0].Path)
	}
}

// Get gives the key of an id. It is safe for concurrent use once all images were seen.
func (k *Keyring) Get(id string) ([]byte, bool) {
	if k.in.KeyFile == "" {
		return nil, false
	}
	k.once.Do(func() {
		images, err := k.in.Open(k.t, k.names)
		if err == nil {
			k.images = images
			k.keys, err = images.Keys()
		}
		if err != nil {
			k.t.Warn("%v", err)
		}
	})
	if k.keys == nil {
		return nil, false
	}
	return k.keys(id)
}

// Close closes the images that were opened.
func (k *Keyring) Close() error {
	if k.images == nil {
		return nil
	}
	return k.images.Close()
}
