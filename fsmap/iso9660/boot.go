package iso9660

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
)

var platforms = map[byte]string{0: "x86", 1: "PowerPC", 2: "Mac", 0xEF: "EFI"}

var media = [...]string{"none", "1.2M floppy", "1.44M floppy", "2.88M floppy", "hard disk"}

// bootImages lists El Torito's boot images in the volume's record.
func (v *volume) bootImages(d *descriptors) {
	if d.catalog == 0 {
		return
	}
	pos := int64(d.catalog) * sectorLen
	images, err := v.bootCatalog(pos)
	if err != nil {
		v.inf.Notes = append(v.inf.Notes, fmt.Sprintf("its boot catalog is damaged: %v", err))
	}
	if len(images) > 0 {
		v.inf.Extra["boot_images"] = images
	}
}

// bootCatalog reads the boot catalog at pos.
func (v *volume) bootCatalog(pos int64) (images []map[string]any, err error) {
	const what = "boot catalog"
	b := make([]byte, max(min(maxBootTable, v.size-pos), 0))
	if err := ondisk.ReadFull(v.meta, b, pos, what); err != nil || len(b) < 2*catEntryLen {
		return nil, ondisk.Truncated(what, "position", pos, nil)
	}
	if b[0] != catValid || b[30] != 0x55 || b[31] != 0xAA {
		return nil, ondisk.Corrupt(what, "validation entry", pos, b[0])
	}
	sum := uint16(0)
	for i := 0; i < catEntryLen; i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	if sum != 0 {
		return nil, ondisk.Corrupt(what, "checksum", pos+28, fmt.Sprintf("%#x", sum))
	}
	platform := b[1]
	left, last := 1, false // entries of this section; it is the last
	for at := catEntryLen; at+catEntryLen <= len(b); at += catEntryLen {
		e := b[at : at+catEntryLen]
		switch {
		case left > 0 && e[0] == catExtension:
		case left > 0:
			left--
			if e[0] != catBootable && e[0] != catPassive {
				return images, ondisk.Corrupt(what, "boot indicator", pos+int64(at), e[0])
			}
			name, ok := platforms[platform]
			if !ok {
				name = fmt.Sprintf("%#x", platform)
			}
			kind := "unknown"
			if int(e[1]&15) < len(media) {
				kind = media[e[1]&15]
			}
			images = append(images, map[string]any{"platform": name, "bootable": e[0] == catBootable, "emulation": kind,
				"start": int64(binary.LittleEndian.Uint32(e[8:])) * sectorLen, "size": int64(binary.LittleEndian.Uint16(e[6:])) * 512})
		case !last && (e[0] == catHeader || e[0] == catLast):
			platform, left, last = e[1], int(binary.LittleEndian.Uint16(e[2:])), e[0] == catLast
		case e[0] == catExtension:
		default:
			return images, nil
		}
	}
	return images, nil
}
