# Makes a repository of the machine web1 with three points: of the disk as it is; with files added, removed and changed
# in mode; and once more with one of them written anew. The disk stays as the last point shows it.
set -e
printf 'new content\n' > new
printf 'newer content\n' > newer
printf "<domain type='kvm'><name>web1</name><memory unit='MiB'>256</memory></domain>\n" > web1.xml
change() { debugfs -w -R "$1" 'disk.raw?offset=3145728' 2> debugfs.log || { cat debugfs.log; exit 1; }; }
point() { mkpoint --config web1.xml "$repo" web1 "2026-11-$1T09:00:00Z" disk.raw; }
repo=$1
qemu-img convert -O raw disk.qcow2 disk.raw
point 20
change 'write new /etc/new'
change 'rm /etc/hostname'
change 'sif /etc/passwd mode 0100600'
point 21
change 'rm /etc/new'
change 'write newer /etc/new'
point 22
