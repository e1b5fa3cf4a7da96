package partition

import "strings"

// bootSectorFS names the content whose first sector head is, or gives "". FAT, NTFS, exFAT and BitLocker volumes end
// that sector in 55 AA as an MBR does, and their boot code lies where its entries would.
func bootSectorFS(head []byte) string {
	switch string(head[3:11]) {
	case "NTFS    ":
		return "ntfs"
	case "EXFAT   ":
		return "exfat"
	case "-FVE-FS-":
		return "BitLocker"
	case "ReFS\x00\x00\x00\x00":
		return "ReFS"
	}
	for magic, name := range map[string]string{"XFSB": "xfs", "LUKS\xba\xbe": "crypto_LUKS", "hsqs": "squashfs"} {
		if strings.HasPrefix(string(head), magic) {
			return name
		}
	}
	if fatBootSector(head) {
		return "vfat"
	}
	return ""
}

// fatBootSector checks the BIOS parameter block as strictly as libblkid does: FAT has no magic to trust.
func fatBootSector(b []byte) bool {
	sector, cluster, reserved, fats := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	media := b[21]
	if le.Uint16(b[510:]) != mbrMagic && b[0] != 0xeb && b[0] != 0xe9 {
		return false
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || cluster == 0 || cluster&(cluster-1) != 0 ||
		reserved == 0 || fats == 0 || media < 0xf8 && media != 0xf0 {
		return false
	}
	if s := string(b[54:62]); s == "JFS     " || s == "HPFS    " {
		return false // OS/2 puts a FAT-like block before these
	}
	root := (int64(le.Uint16(b[17:]))*32 + sector - 1) / sector
	total, fat := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	fat32 := fat == 0
	if fat32 {
		fat = int64(le.Uint32(b[36:]))
	}
	data := total - reserved - fat*fats - root
	if fat == 0 || data < 0 {
		return false
	}
	if fat32 {
		return data/cluster <= 0x0ffffff6
	}
	return data/cluster <= 0xfff4
}
