package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fsmap/mapfile"
)

// firmwareCode is where Debian has the UEFI firmware whose variables lie in a file of their own.
const firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"

// printBoot prints a QEMU command that boots a point where it lies. QEMU opens the point's images for reading, and
// writes to overlays that vanish with it.
func (o *options) printBoot(ctx context.Context, t *cli.Term, s repo.Store, args []string) error {
	if _, ok := s.(*repo.Dir); !ok {
		return errors.New("QEMU boots from a repository in a folder; from S3, bring the machine back with --image first")
	}
	p, err := findPoint(ctx, t, s, args[0])
	if err != nil {
		return err
	}
	m, err := readMachine(ctx, s, p.Point)
	if err != nil {
		return err
	}
	words := []string{"qemu-system-x86_64", "-accel", "kvm", "-accel", "tcg", "-m", fmt.Sprint(m.memory)}
	if m.variables != "" {
		words = append(words, "-machine", "q35", "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+firmwareCode,
			"-drive", "if=pflash,unit=1,format=raw,snapshot=on,file="+comma(m.variables))
	}
	sata := 0
	for n := range p.Disks {
		d := &p.Disks[n]
		path, err := filepath.Abs(repo.Path(s, p.Machine+"/"+d.Image.Name))
		if err != nil {
			return err
		}
		drive := "format=qcow2,snapshot=on,file=" + comma(path)
		switch {
		case strings.HasPrefix(d.Name, "hd"):
			words = append(words, "-drive", "if=ide,"+drive)
		case strings.HasPrefix(d.Name, "sd"):
			if sata == 0 {
				words = append(words, "-device", "ahci,id=sata")
			}
			words = append(words, "-drive", fmt.Sprintf("if=none,id=disk%d,%s", n, drive), "-device", fmt.Sprintf("ide-hd,drive=disk%d,bus=sata.%d", n, sata))
			sata++
		default:
			words = append(words, "-drive", "if=virtio,"+drive)
		}
	}
	for i := range words {
		words[i] = quote(words[i])
	}
	_, err = fmt.Fprintln(t.Stdout, strings.Join(words, " "))
	return err
}

// machineSettings are what of a machine's configuration matters for booting it.
type machineSettings struct {
	memory    int64  // MiB
	variables string // the firmware's, for a machine with UEFI
}

// readMachine takes them from the files of the configuration.
func readMachine(ctx context.Context, s repo.Store, p *repo.Point) (machineSettings, error) {
	m := machineSettings{memory: 1024}
	for _, f := range p.Config {
		name := p.Machine + "/" + f.Name
		switch {
		case f.Role == mapfile.RoleFirmware:
			path, err := filepath.Abs(repo.Path(s, name))
			if err != nil {
				return m, err
			}
			m.variables = path
		case filepath.Ext(f.Name) == ".xml":
			b, err := repo.ReadFile(ctx, s, name, 16<<20)
			if err != nil {
				return m, err
			}
			var domain struct {
				XMLName xml.Name `xml:"domain"`
				Memory  struct {
					Unit  string `xml:"unit,attr"`
					Value int64  `xml:",chardata"`
				} `xml:"memory"`
			}
			if xml.Unmarshal(b, &domain) == nil {
				m.memory = mebibytes(domain.Memory.Value, domain.Memory.Unit, m.memory)
			}
		}
	}
	return m, nil
}

// mebibytes gives a size of libvirt's in MiB, or otherwise where it makes no sense.
func mebibytes(n int64, unit string, otherwise int64) int64 {
	switch unit {
	case "", "k", "KiB":
		n >>= 10
	case "b", "bytes":
		n >>= 20
	case "G", "GiB":
		n <<= 10
	case "M", "MiB":
	default:
		return otherwise
	}
	if n < 1 || n > 1<<24 {
		return otherwise
	}
	return n
}

// comma writes a path so that it stands in an option of QEMU's.
func comma(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// quote writes a word so that a shell takes it as one.
func quote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./,=:@+"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
