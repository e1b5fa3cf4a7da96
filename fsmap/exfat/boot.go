package exfat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vmkit/formats/ondisk"
)

// probe tells exFAT by the name in its boot sector.
func probe(_ io.ReaderAt, _ int64, head []byte) (string, bool) {
	return "exfat", len(head) >= 512 && string(head[3:11]) == bootName
}

// readBoot gives the boot sector: the main one, or the backup where only that is sound. A checksum that is wrong in
// both is told in doubt.
func readBoot(r io.ReaderAt) (s *bootSector, notes []string, doubt, err error) {
	s, err = parseBoot(r, 0)
	if errors.Is(err, ondisk.ErrNot) {
		return nil, nil, nil, err
	}
	sumErr := err
	if err == nil {
		if sumErr = checkSum(r, 0, s.SectorShift); sumErr == nil {
			return s, nil, nil, nil
		}
	}
	for shift := uint8(minSectorShift); shift <= maxSectorShift; shift++ {
		base := int64(bootSectors) << shift
		if b, e := parseBoot(r, base); e == nil && b.SectorShift == shift && checkSum(r, base, shift) == nil {
			return b, []string{fmt.Sprintf("its main boot region is damaged (%v): the backup is used", sumErr)}, nil, nil
		}
	}
	return s, nil, sumErr, err
}

// parseBoot reads the boot sector at base and checks each field.
func parseBoot(r io.ReaderAt, base int64) (*bootSector, error) {
	const what = "exfat boot sector"
	b, err := ondisk.Read(r, base, 512, what)
	if err != nil {
		return nil, err
	}
	s := new(bootSector)
	if _, err := binary.Decode(b, binary.LittleEndian, s); err != nil {
		return nil, err
	}
	if string(s.Name[:]) != bootName {
		return nil, &ondisk.Error{What: what, Field: "name", Off: base + 3, Err: ondisk.ErrNot}
	}
	bad := func(field string, off int64, got any) (*bootSector, error) {
		return nil, ondisk.Corrupt(what, field, base+off, got)
	}
	switch {
	case s.BootSignature != bootSignature:
		return bad("signature", 510, s.BootSignature)
	case s.SectorShift < minSectorShift || s.SectorShift > maxSectorShift:
		return bad("sector size shift", 108, s.SectorShift)
	case s.ClusterShift > maxShift-s.SectorShift:
		return bad("cluster size shift", 109, s.ClusterShift)
	case s.Revision>>8 != 1:
		return nil, ondisk.Unsupported(what, "revision", base+104, fmt.Sprintf("%d.%02d", s.Revision>>8, s.Revision&0xFF))
	case s.FATs != 1 && s.FATs != 2:
		return bad("number of tables", 110, s.FATs)
	case s.Flags&flagSecondFAT != 0 && s.FATs != 2:
		return bad("active table, of one", 106, s.Flags)
	case s.Clusters == 0 || uint64(s.Clusters) > maxClusters:
		return bad("clusters", 92, s.Clusters)
	case s.FATOffset < 2*bootSectors:
		return bad("table's position", 80, s.FATOffset)
	case uint64(s.FATLength)<<s.SectorShift < (uint64(s.Clusters)+2)*4:
		return bad("table's length", 84, s.FATLength)
	case uint64(s.HeapOffset) < uint64(s.FATOffset)+uint64(s.FATLength)*uint64(s.FATs):
		return bad("cluster heap's position", 88, s.HeapOffset)
	case s.VolumeLength > 1<<(62-s.SectorShift) || s.VolumeLength < uint64(s.HeapOffset):
		return bad("volume length", 72, s.VolumeLength)
	case (s.VolumeLength-uint64(s.HeapOffset))>>s.ClusterShift < uint64(s.Clusters):
		return bad("clusters, more than the volume holds:", 92, s.Clusters)
	case s.RootCluster < 2 || s.RootCluster > s.Clusters+1:
		return bad("first cluster of the root directory", 96, s.RootCluster)
	}
	return s, nil
}

// checkSum verifies the boot region at base.
func checkSum(r io.ReaderAt, base int64, shift uint8) error {
	b, err := ondisk.Read(r, base, bootSectors<<shift, "exfat boot region")
	if err != nil {
		return err
	}
	sums := b[(bootSectors-1)<<shift:]
	sum := uint32(0)
	for i, c := range b[:len(b)-len(sums)] {
		if i != offFlags && i != offFlags+1 && i != offPercent {
			sum = sum<<31 | sum>>1
			sum += uint32(c)
		}
	}
	for i := 0; i < len(sums); i += 4 {
		if got := binary.LittleEndian.Uint32(sums[i:]); got != sum {
			return ondisk.Corrupt("exfat boot region", "checksum", base+int64(len(b)-len(sums)+i), fmt.Sprintf("%#x", got))
		}
	}
	return nil
}
