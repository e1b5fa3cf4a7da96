package clone

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/beevik/etree"
	"github.com/google/go-cmp/cmp"

	"vmkit/cmd/internal/hypervisor/vmx"
	"vmkit/formats"
	"vmkit/formats/vdi"
	"vmkit/fsmap/mapfile"
)

const someVMX = `.encoding = "UTF-8"
displayName = "Virtual 01"
nvram = "Virtual 01.nvram"
extendedConfigFile = "Virtual 01.vmxf"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "Virtual 01.vmdk"
scsi0:0.redo = "x"
scsi0:0.ctkEnabled = "TRUE"
ctkEnabled = "TRUE"
changeTrackPath = "x-ctk.vmdk"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "/shared/data.vmdk"
scsi0:2.present = "FALSE"
scsi0:2.fileName = "gone.vmdk"
sata0:1.present = "TRUE"
sata0:1.deviceType = "cdrom-image"
sata0:1.fileName = "tools.iso"
ide1:0.deviceType = "cdrom-raw"
ide1:0.fileName = "auto detect"
serial0.present = "TRUE"
serial0.fileName = "/var/log/serial.txt"
sound.fileName = "-1"
uuid.bios = "56 4d 00"
uuid.location = "56 4d 01"
uuid.action = "keep"
ethernet0.present = "TRUE"
ethernet0.generatedAddress = "00:0c:29:00:00:01"
ethernet0.generatedAddressOffset = "0"
ethernet1.present = "TRUE"
ethernet1.addressType = "static"
ethernet1.address = "00:50:56:00:00:01"
checkpoint.vmState = "Virtual 01.vmss"
checkpoint.vmState.readOnly = "TRUE"
workingDir = "/vms/Virtual 01"
sched.swap.derivedName = "/vms/x.vswp"
annotation = "Virtual 01.vmdk is not replaced here"
`

// vmware makes a machine of VMware's in a folder.
func vmware(t *testing.T) *Machine {
	t.Helper()
	d := "vms/Virtual 01/"
	write(t, d+"Virtual 01.vmx", someVMX)
	write(t, d+"Virtual 01.vmxf", `<?xml version="1.0"?><Foundry><VM><vmxPathName type="string">Virtual 01.vmx</vmxPathName></VM></Foundry>`)
	write(t, d+"Virtual 01.vmsd", "snapshot0.uid = \"1\"\nsnapshot0.filename = \"Virtual 01-Snapshot1.vmsn\"\nsnapshot0.disk0.fileName = \"Virtual 01.vmdk\"\nsnapshot0.disk1.fileName = \"else.vmdk\"\n")
	write(t, d+"Virtual 01-Snapshot1.vmsn", "x")
	write(t, d+"Virtual 01.nvram", "x")
	write(t, d+"Virtual 01.vmss", "memory")
	write(t, d+"Virtual 011.vmdk", "another machine's")
	qemuImg(t, "create", "-q", "-f", "vmdk", d+"Virtual 01.vmdk", "4M")
	m := machine(t, "Virtual 01", d+"Virtual 01.vmx|config", d+"Virtual 01.vmxf|config", d+"Virtual 01.vmsd|config", d+"Virtual 01-Snapshot1.vmsn|memory",
		d+"Virtual 01.nvram|firmware", d+"Virtual 01.vmss|memory", d+"Virtual 01.vmdk|disk|vmdk|scsi0:0")
	m.VM.Driver, m.VM.Target = "vmx", "vmx:"+d+"Virtual 01.vmx"
	return wrap(t, m.VM)
}

func parseVMX(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := vmx.Parse([]byte(read(t, path)))
	if err != nil {
		t.Fatal(err)
	}
	return maps.Collect(f.All())
}

func TestVMware(t *testing.T) {
	t.Chdir(t.TempDir())
	m := vmware(t)
	r := mustClone(t, m, Options{Name: "Virtual 03", Isolate: true})
	want := []string{"Virtual 03-Snapshot1.vmsn", "Virtual 03.nvram", "Virtual 03.vmdk", "Virtual 03.vmsd", "Virtual 03.vmx", "Virtual 03.vmxf", "clone.json"}
	if got := left(t, r.Folder); !slices.Equal(got, want) {
		t.Errorf("the clone has %q", got)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got := parseVMX(t, r.Folder+"/Virtual 03.vmx")
	if d := cmp.Diff(map[string]string{
		".encoding": "UTF-8", "displayName": "Virtual 03", "nvram": "Virtual 03.nvram", "extendedConfigFile": "Virtual 03.vmxf",
		"scsi0:0.present": "TRUE", "scsi0:0.fileName": "Virtual 03.vmdk", "scsi0:0.redo": "",
		"scsi0:1.present": "FALSE", "scsi0:1.fileName": "/shared/data.vmdk", "scsi0:2.present": "FALSE", "scsi0:2.fileName": "gone.vmdk",
		"sata0:1.present": "TRUE", "sata0:1.deviceType": "cdrom-image", "sata0:1.fileName": here + "/vms/Virtual 01/tools.iso",
		"ide1:0.deviceType": "cdrom-raw", "ide1:0.fileName": "auto detect",
		"serial0.present": "FALSE", "serial0.fileName": "/var/log/serial.txt", "sound.fileName": "-1",
		"uuid.action": "create", "ethernet0.present": "TRUE", "ethernet1.present": "TRUE", "ethernet1.addressType": "generated",
		"ethernet0.startConnected": "FALSE", "ethernet1.startConnected": "FALSE", "isolation.tools.hgfs.disable": "TRUE",
		"annotation": "Virtual 01.vmdk is not replaced here",
	}, got); d != "" {
		t.Error(d)
	}
	snapshots := parseVMX(t, r.Folder+"/Virtual 03.vmsd")
	if snapshots["snapshot0.filename"] != "Virtual 03-Snapshot1.vmsn" || snapshots["snapshot0.disk0.fileName"] != "Virtual 03.vmdk" || snapshots["snapshot0.disk1.fileName"] != "else.vmdk" {
		t.Errorf("snapshots: %q", snapshots)
	}
	if text := read(t, r.Folder+"/Virtual 03.vmxf"); !strings.Contains(text, `<vmxPathName type="string">Virtual 03.vmx</vmxPathName>`) {
		t.Errorf("vmxf: %s", text)
	}
	qemuImg(t, "compare", "vms/Virtual 01/Virtual 01.vmdk", r.Images[0])
	notes := strings.Join(r.Notes, "\n")
	for _, want := range []string{"Virtual 01.vmss (memory)", `"/shared/data.vmdk" of the machine is not in its record`, "serial0"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note of %s in %q", want, notes)
		}
	}

	// Without a name of its own its files keep theirs.
	r = mustClone(t, m, Options{})
	got = parseVMX(t, r.Folder+"/Virtual 01.vmx")
	if got["displayName"] != "Virtual 01-20261122T090000Z" || got["scsi0:0.fileName"] != "Virtual 01.vmdk" || got["ethernet0.startConnected"] != "" {
		t.Errorf("%q", got)
	}
	// A configuration that was read during a snapshot names the disk that takes the writes.
	write(t, "vms/Virtual 01/Virtual 01.vmx", strings.Replace(someVMX, `scsi0:0.fileName = "Virtual 01.vmdk"`, `SCSI0:0.fileName = "Virtual 01-000001.vmdk"`, 1))
	r = mustClone(t, m, Options{Name: "y"})
	if got := parseVMX(t, r.Folder+"/y.vmx"); got["SCSI0:0.fileName"] != "y.vmdk" || got["scsi0:0.present"] != "TRUE" {
		t.Errorf("%q", got)
	}
	// A configuration that can't be parsed is a gap.
	write(t, "vms/Virtual 01/Virtual 01.vmx", "a\x00b")
	if _, problems, err := tryClone(t, m, Options{Name: "z"}); err != nil || len(problems) != 1 || !strings.Contains(problems[0].Error, "NUL") {
		t.Errorf("%v, %v", problems, err)
	}
}

const someDomain = `<!-- made by hand -->
<domain type='test' id='7'>
  <name>web1</name>
  <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
  <memory unit='KiB'>65536</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source dev='DIR/top.qcow2' index='1'><encryption format='luks'><secret type='passphrase' uuid='6695eb01-f6a4-8304-79aa-97f2502e193f'/></encryption><reservations managed='yes'/></source>
      <backingStore type='file'><format type='raw'/><source file='DIR/base.raw'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/elsewhere/data.raw'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/iso/cd.iso'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:11:22:33'/>
      <source network='default'/>
      <target dev='vnet0'/>
      <model type='virtio'/>
    </interface>
    <serial type='file'><source path='/var/log/web1.log'/><target port='0'/></serial>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-web1/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='5901' autoport='no' listen='127.0.0.1'/>
    <filesystem type='mount'><source dir='/home'/><target dir='home'/></filesystem>
  </devices>
</domain>
`

func TestLibvirt(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	noise(t, "base.raw", 4<<20, 1)
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2")
	// As vmfreeze keeps what the running machine goes on to change.
	write(t, ".vmfreeze-1/web1.xml", strings.ReplaceAll(someDomain, "DIR", here))
	write(t, ".vmfreeze-1/web1_VARS.fd", "vars")
	m := machine(t, "web1", "top.qcow2|disk|qcow2|vda", "base.raw|backing|raw|vda", ".vmfreeze-1/web1.xml|config", ".vmfreeze-1/web1_VARS.fd|firmware")
	m.VM.Driver = "libvirt"
	const name = "a \"b\" & <c>\nd"
	r := mustClone(t, m, Options{Name: name, Isolate: true})
	path := filepath.Join(r.Folder, name+".xml")
	doc := etree.NewDocument()
	if err := doc.ReadFromFile(path); err != nil {
		t.Fatal(err)
	}
	root := doc.Root()
	text := func(path string) string {
		if e := root.FindElement(path); e != nil {
			return e.Text()
		}
		return ""
	}
	attr := func(path, key string) string {
		if e := root.FindElement(path); e != nil {
			return e.SelectAttrValue(key, "")
		}
		return "(no element)"
	}
	folder := filepath.Join(here, r.Folder)
	for what, pair := range map[string][2]string{
		"id":        {root.SelectAttrValue("id", "none"), "none"},
		"name":      {text("name"), `a "b" & <c>_d`},
		"nvram":     {text("os/nvram"), folder + "/" + name + "_VARS.fd"},
		"template":  {attr("os/nvram", "template"), "/usr/share/OVMF/OVMF_VARS.fd"},
		"disk":      {attr("devices/disk[1]/source", "file"), folder + "/top.qcow2"},
		"disk type": {attr("devices/disk[1]", "type"), "file"},
		"key":       {attr("devices/disk[1]/source/encryption", "format") + attr("devices/disk[1]/source/reservations", "managed"), "luks(no element)"},
		"backing":   {attr("//backingStore", "type"), "(no element)"},
		"cd":        {attr("devices/disk[2]/source", "file"), "/iso/cd.iso"},
		"link":      {attr("devices/interface/link", "state"), "down"},
		"tap":       {attr("devices/interface/target", "dev"), "(no element)"},
		"serial":    {attr("devices/serial", "type"), "null"},
		"log":       {attr("devices/serial/source", "path"), "(no element)"},
		"channel":   {attr("devices/channel/source", "path"), ""},
		"port":      {attr("devices/graphics", "port"), ""},
		"folder":    {attr("devices/filesystem", "type"), "(no element)"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
		}
	}
	if len(root.FindElements("devices/disk")) != 2 {
		t.Error("a disk that the clone has no copy of is still there")
	}
	if mac := attr("devices/interface/mac", "address"); !regexp.MustCompile(`^52:54:00(:[0-9a-f]{2}){3}$`).MatchString(mac) || mac == "52:54:00:11:22:33" {
		t.Errorf("mac %s", mac)
	}
	if uuid := text("uuid"); !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(uuid) {
		t.Errorf("uuid %s", uuid)
	}
	// libvirt's own driver for tests takes the definition, and starts it.
	if _, err := exec.LookPath("virsh"); err != nil {
		t.Skip("needs virsh (package libvirt-clients) for the rest")
	}
	out, err := exec.Command("virsh", "-c", "test:///default", "define "+quoteVirsh(path)+"; start 'a \"b\" & <c>_d'; domstate 'a \"b\" & <c>_d'").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "running") {
		t.Errorf("virsh: %v: %s", err, out)
	}
}

// quoteVirsh quotes a word for virsh's own language.
func quoteVirsh(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

const someVBox = `<?xml version="1.0"?>
<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
  <Machine uuid="{6695eb01-f6a4-8304-79aa-97f2502e193f}" name="web1" OSType="Debian_64" stateFile="Snapshots/x.sav" snapshotFolder="/vms/snap" currentSnapshot="{11111111-f6a4-8304-79aa-97f2502e193f}">
    <MediaRegistry>
      <HardDisks>
        <HardDisk uuid="{VDI}" location="web1.vdi" format="VDI" type="Normal"/>
        <HardDisk uuid="{00112233-4455-6677-8899-aabbccddeeff}" location="web1.vmdk" format="VMDK" type="Normal"/>
        <HardDisk uuid="{22222222-4455-6677-8899-aabbccddeeff}" location="web1.vhd" format="VHD" type="Normal"/>
      </HardDisks>
      <DVDImages><Image uuid="{33333333-4455-6677-8899-aabbccddeeff}" location="/iso/cd.iso"/></DVDImages>
    </MediaRegistry>
    <Snapshot uuid="{11111111-f6a4-8304-79aa-97f2502e193f}" name="one" stateFile="Snapshots/one.sav"/>
    <Hardware>
      <BIOS><NVRAM path="web1.nvram"/></BIOS>
      <Network><Adapter slot="0" enabled="true" MACAddress="080027AABBCC" cable="true" type="virtio"/></Network>
      <UART><Port slot="0" enabled="true" path="/tmp/x" hostMode="RawFile"/></UART>
      <SharedFolders><SharedFolder name="home" hostPath="/home" writable="true"/></SharedFolders>
      <StorageControllers><StorageController name="SATA">
        <AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{VDI}"/></AttachedDevice>
        <AttachedDevice type="DVD" port="1" device="0"><Image uuid="{33333333-4455-6677-8899-aabbccddeeff}"/></AttachedDevice>
      </StorageController></StorageControllers>
    </Hardware>
  </Machine>
</VirtualBox>
`

func vdiUUID(t *testing.T, path string) string {
	t.Helper()
	src := &formats.OSSource{}
	defer src.Close()
	f, err := src.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	id, err := vdi.ReadIdentity(f)
	if err != nil {
		t.Fatal(err)
	}
	return id.UUID
}

func TestVirtualBox(t *testing.T) {
	t.Chdir(t.TempDir())
	qemuImg(t, "create", "-q", "-f", "vdi", "web1.vdi", "4M")
	qemuImg(t, "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "web1.vmdk", "4M")
	qemuImg(t, "create", "-q", "-f", "vpc", "web1.vhd", "4M")
	write(t, "web1.vmdk", read(t, "web1.vmdk")+"ddb.uuid.image=\"00112233-4455-6677-8899-AABBCCDDEEFF\"\n")
	old := vdiUUID(t, "web1.vdi")
	write(t, "web1.vbox", strings.ReplaceAll(someVBox, "VDI}", old+"}"))
	write(t, "web1.nvram", "x")
	m := machine(t, "web1", "web1.vbox|config", "web1.nvram|firmware", "web1.vdi|disk|vdi", "web1.vmdk|disk|vmdk", "web1-flat.vmdk|backing", "web1.vhd|disk|vpc")
	r := mustClone(t, m, Options{Name: "neu", Isolate: true})
	doc := etree.NewDocument()
	if err := doc.ReadFromFile(r.Folder + "/neu.vbox"); err != nil {
		t.Fatal(err)
	}
	attr := func(path, key string) string {
		if e := doc.FindElement(path); e != nil {
			return e.SelectAttrValue(key, "")
		}
		return "(no element)"
	}
	now := vdiUUID(t, r.Folder+"/neu.vdi")
	if now == old {
		t.Error("the VDI kept its UUID")
	}
	vmdkUUID := strings.Trim(attr("//HardDisk[@format='VMDK']", "uuid"), "{}")
	for what, pair := range map[string][2]string{
		"name":       {attr("//Machine", "name"), "neu"},
		"state":      {attr("//Machine", "stateFile") + attr("//Snapshot", "stateFile"), ""},
		"snapshots":  {attr("//Machine", "snapshotFolder"), "Snapshots"},
		"vdi":        {attr("//HardDisk[@format='VDI']", "location") + attr("//HardDisk[@format='VDI']", "uuid"), "neu.vdi{" + now + "}"},
		"attached":   {attr("//AttachedDevice[@type='HardDisk']/Image", "uuid"), "{" + now + "}"},
		"vmdk":       {attr("//HardDisk[@format='VMDK']", "location"), "neu.vmdk"},
		"vhd":        {attr("//HardDisk[@format='VHD']", "uuid"), "{22222222-4455-6677-8899-aabbccddeeff}"},
		"cd":         {attr("//DVDImages/Image", "uuid") + attr("//AttachedDevice[@type='DVD']/Image", "uuid"), "(no element)(no element)"},
		"cable":      {attr("//Adapter", "cable"), "false"},
		"uart":       {attr("//UART/Port", "enabled") + attr("//UART/Port", "path"), "false"},
		"folder":     {attr("//SharedFolder", "name"), "(no element)"},
		"nvram":      {attr("//NVRAM", "path"), "neu.nvram"},
		"snapshot":   {attr("//Machine", "currentSnapshot"), attr("//Snapshot", "uuid")},
		"namespace":  {attr("VirtualBox", "xmlns"), "http://www.virtualbox.org/"},
		"descriptor": {read(t, r.Folder+"/neu.vmdk"), strings.NewReplacer("web1-flat", "neu-flat", "00112233-4455-6677-8899-AABBCCDDEEFF", vmdkUUID).Replace(read(t, "web1.vmdk"))},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
		}
	}
	if id := attr("//Machine", "uuid"); strings.Contains(id, "6695eb01") || attr("//Adapter", "MACAddress") == "080027AABBCC" {
		t.Errorf("it kept its uuid %s or its address", id)
	}
	for i, format := range []string{"vdi", "vmdk", "vpc"} {
		qemuImg(t, "compare", "-f", format, "-F", format, m.VM.Files[[]int{2, 3, 5}[i]].Path, r.Images[i])
	}
}

// FuzzConfig: whatever a configuration holds, it is rewritten or refused, and what was rewritten can be once more.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{someVMX, someDomain, someVBox, "<Foundry><VM><vmxPathName>x</vmxPathName></VM></Foundry>", "<domain/>"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Clone{o: &Options{Isolate: true}, name: "n", vm: &mapfile.VM{}, stage: &stage{dir: "d", name: "n"}, uuids: map[string]string{}}
		it := &item{abs: "/nowhere/x", pair: &pair{}}
		for name, rewrite := range map[string]func([]byte) ([]byte, error){
			"vmx":    func(b []byte) ([]byte, error) { return c.rewriteVMX(it, b) },
			"vmsd":   func(b []byte) ([]byte, error) { return c.rewriteVMSD(it, b) },
			"vmxf":   c.rewriteVMXF,
			"vbox":   func(b []byte) ([]byte, error) { return c.rewriteVBox(it, b) },
			"domain": func(b []byte) ([]byte, error) { return c.rewriteDomain(it, b) },
		} {
			out, err := rewrite(b)
			if err != nil {
				continue
			}
			if _, err := rewrite(out); err != nil {
				t.Errorf("%s: %q became %q, which can't be read: %v", name, b, out, err)
			}
		}
	})
}
