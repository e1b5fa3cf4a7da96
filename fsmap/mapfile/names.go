package mapfile

import "strings"

// Names keeps what people call the images and volumes of a map, to tell problems by. See is to be given the records of
// the map.
type Names struct {
	images  map[int]string
	volumes map[int]Volume
}

// See takes note of a *Map, *Image or *Volume; others don't matter.
func (n *Names) See(record any) {
	switch r := record.(type) {
	case *Map:
		*n = Names{images: make(map[int]string), volumes: make(map[int]Volume)}
	case *Image:
		n.images[r.ID] = r.Name
		if len(r.Files) > 0 {
			n.images[r.ID] = r.Files[0].Path
		}
	case *Volume:
		n.volumes[r.ID] = Volume{Name: r.Name, Image: r.Image}
	}
}

// Volume gives the name of a volume.
func (n *Names) Volume(id int) string { return n.volumes[id].Name }

// Problem renders a problem: "web1.qcow2: p2: /etc/passwd: content: bytes are missing".
func (n *Names) Problem(p *Problem) string {
	var parts []string
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	image := p.Image
	v, ok := n.volumes[p.Volume]
	if ok && image == None {
		image = v.Image
	}
	add(n.images[image])
	add(v.Name)
	if p.Stream != "" {
		add(p.Path + ":" + p.Stream)
	} else {
		add(p.Path)
	}
	add(p.What)
	add(p.Error)
	return strings.Join(parts, ": ")
}
