package domain

import (
	"strings"
	"testing"
)

const sample = `<?xml version="1.0"?>
<!-- <domain> is below -->
<domain type='kvm' id='7'><name>wéb "1" &amp; co</name><uuid>60522a58-c73d-4051-ba3f-235f0ecd5bbc</uuid>
<os><nvram template='/t'> /v/web_VARS.fd
</nvram></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/a, "b".qcow2' index='2'/>
 <backingStore type='file'><format type='qcow2'/><source file='/i/base'/><backingStore type='block'><format type='raw'/><source dev='/dev/x'/><backingStore/></backingStore></backingStore>
 <mirror type='file' job='active-commit' ready='yes'><source file='/i/m'/></mirror><target dev='vda' bus='virtio'/></disk>
<disk type='block'><source dev='/dev/vg/b'/><target dev='vdb'/><shareable/></disk>
<disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdc'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/i/x.iso'/><target dev='sda'/><readonly/></disk>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>`

func TestParse(t *testing.T) {
	d, err := Parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != `wéb "1" & co` || d.ID != "7" || d.UUID == "" || d.NVRAMPath() != "/v/web_VARS.fd" || d.TPMs[0].Backend.Version != "2.0" {
		t.Errorf("%+v", d)
	}
	if n := len(d.Images()); n != 3 {
		t.Errorf("%d disks", n)
	}
	a, b, c := d.Disk("vda"), d.Disk("vdb"), d.Disk("vdc")
	if a.Source.Path() != `/i/a, "b".qcow2` || a.Driver.Type != "qcow2" || a.Backing.Backing.Source.Path() != "/dev/x" || a.Backing.Format.Type != "qcow2" ||
		a.Mirror.Job != "active-commit" || a.Mirror.Ready != "yes" || a.ReadOnly != nil {
		t.Errorf("%+v", a)
	}
	if b.Source.Path() != "/dev/vg/b" || b.Shareable == nil || c.ReadOnly == nil || c.Source.Pool != "p" || c.Source.Volume != "v" || d.Disk("vdz") != nil {
		t.Errorf("%+v, %+v", b, c)
	}
	newer, err := Parse("<domain><name>n</name><os><nvram type='file'><source file='/v/n.fd'/></nvram></os></domain>")
	if err != nil || newer.NVRAMPath() != "/v/n.fd" {
		t.Errorf("%+v, %v", newer, err)
	}
}

func TestRefuse(t *testing.T) {
	for text, want := range map[string]string{
		"<domain>": "EOF", "<network><name>x</name></network>": "domain", "<domain><name/></domain>": "no name",
		strings.Repeat(" ", maxSize+1): "at most",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", text, err, want)
		}
	}
}

func TestIs(t *testing.T) {
	for text, want := range map[string]bool{
		sample: true, "\ufeff <domain>": true, "<domain type='x'": true, "<domainsnapshot>": false, "<network>": false,
		"<!-- <domain> -->": false, "<!-- open": false, "<?xml": false, "": false,
	} {
		if Is([]byte(text)) != want {
			t.Errorf("%.40q: %v", text, !want)
		}
	}
}

func FuzzIs(f *testing.F) {
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, b []byte) {
		Is(b)
		Parse(string(b))
	})
}
