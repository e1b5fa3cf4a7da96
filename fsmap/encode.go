package fsmap

import (
	"cmp"
	"context"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

const (
	// batchNames is how many names are worked off together; with content to be hashed, hashNames.
	batchNames = 256
	hashNames  = 16
	// maxBatchPaths ends a batch whose paths are long.
	maxBatchPaths = 64 << 10
	// maxLines is how many bytes of records are gathered before they are handed on.
	maxLines = 256 << 10
)

// batch is a stretch of the walk. One worker makes its records; they are written in the order of the batches.
type batch struct {
	vol   *volume
	fs    FS
	items []item
	paths []byte
	out   chan chunk
}

// item is a name, or a problem that the walk met.
type item struct {
	ref        Ref
	aux        uint64
	kind       mapfile.FileKind // as the directory has it
	dir        bool             // the walk enters it as a directory, or would
	name       uint16           // length of the path's last component
	start, end int              // of the path
	what       string
	err        error
}

// chunk is a stretch of finished records.
type chunk struct {
	lines    []byte
	count    mapfile.End
	problems []mapfile.Problem
	content  contents
	last     bool // of its batch
}

// contents counts the regular files that hold anything, and those of which nothing is readable without a key.
type contents struct{ files, locked int64 }

// worker makes records. One goroutine uses it.
type worker struct {
	*recorder
	buffs   chan []byte // empty ones
	vol     *volume
	b       *batch
	text    string // the batch's paths
	runs    Runs
	node    Node
	content contents
	hash    bool
	sum     *reader
}

func newWorker(c *Config, buffs chan []byte) *worker {
	k := &worker{hash: c.Hash, buffs: buffs}
	k.recorder = newRecorder(k.handOn)
	k.comp.diskOnly = c.DiskOnly
	k.runs.spill = k.take
	return k
}

// work makes the records of a batch. Once ctx is done it only lets go of it.
func (k *worker) work(ctx context.Context, b *batch) {
	if k.vol != b.vol {
		k.vol = b.vol
		k.comp.use(b.vol.rec.Image, b.vol.disks...)
		if k.hash {
			k.sum = newReader(b.vol.disks, b.vol.env)
		}
	}
	k.b, k.text = b, string(b.paths) // one string for all, which the records share
	k.renew()
	for i := range b.items {
		if ctx.Err() != nil {
			break
		}
		it := &b.items[i]
		if path := k.text[it.start:it.end]; it.err != nil {
			k.fail(path, "", it.what, it.err)
		} else {
			k.file(it, path)
		}
		if len(k.lines) >= maxLines {
			k.handOn()
		}
	}
	k.send(true)
}

// send hands on the records that were made.
func (k *worker) send(last bool) { k.b.out <- chunk{k.lines, k.count, k.problems, k.content, last} }

// renew begins a chunk.
func (k *worker) renew() {
	k.count, k.problems, k.content = mapfile.End{}, nil, contents{}
	select {
	case k.lines = <-k.buffs:
	default:
		k.lines = make([]byte, 0, maxLines+maxLines/4)
	}
}

// handOn hands on the records that were made while the batch goes on.
func (k *worker) handOn() error {
	k.send(false)
	k.renew()
	return nil
}

// fail makes a problem record of the batch's volume.
func (k *worker) fail(path, stream, what string, err error) {
	k.problem(mapfile.Problem{Image: mapfile.None, Volume: k.vol.rec.ID, Path: path, Stream: stream, What: what, Error: err.Error()})
}

// file makes the records of one name.
func (k *worker) file(it *item, path string) {
	n, fs := &k.node, k.b.fs
	n.Reset()
	n.Ref, n.Aux = it.ref, it.aux
	name := k.b.paths[it.end-int(it.name) : it.end]
	if err := fs.Node(Entry{Name: name, Ref: it.ref, Kind: it.kind, Aux: it.aux, Path: k.b.paths[it.start:it.end]}, n); err != nil {
		k.fail(path, "", "inode", err)
		return
	}
	if n.Kind.String() == "" {
		k.fail(path, "", "inode", ondisk.Corrupt("inode", "kind", -1, fmt.Sprintf("%q", n.Kind)))
		return
	}
	rec := mapfile.File{
		Volume: k.vol.rec.ID, Path: path, Inode: n.Inode, Kind: n.Kind, Size: max(n.Size, 0), Mode: n.Mode, UID: n.UID, GID: n.GID, Links: n.Links,
		MTime: n.MTime, ATime: n.ATime, CTime: n.CTime, BTime: n.BTime, Target: string(n.Target), Major: n.Major, Minor: n.Minor,
		Xattrs: n.Xattrs, Sequence: n.Sequence, Owner: n.Owner, Group: n.Group, Project: n.Project, Attrs: n.Attrs, Reparse: n.Reparse,
	}
	if n.Kind == mapfile.Regular {
		k.bytes(&rec, nil)
	} else {
		k.begin(&rec)
		k.end()
	}
	for _, err := range n.Problems {
		k.fail(path, "", "inode", err)
	}
	if n.Kind == mapfile.Directory && !it.dir {
		k.fail(path, "", "directory", ondisk.Corrupt("directory entry", "kind of what is a directory", -1, it.kind.String()))
	}
	for i := range n.Streams {
		s := &n.Streams[i]
		rec.Kind, rec.Stream, rec.Size, rec.Target, rec.Xattrs = mapfile.Regular, string(s.Name), max(s.Size, 0), "", nil
		k.bytes(&rec, s)
	}
}

// bytes makes the records of what holds bytes: a regular file, or a stream.
func (k *worker) bytes(rec *mapfile.File, s *Stream) {
	fs, n, r := k.b.fs, &k.node, &k.runs
	var sumErr error
	rec.SHA256 = ""
	if s == nil {
		rec.SHA256 = n.SHA256
	}
	if k.hash && rec.SHA256 == "" && !n.Encrypted {
		rec.SHA256, sumErr = k.sum.sum(fs, n, s, rec.Size)
	}
	k.begin(rec)
	r.Reset(rec.Size)
	err := fs.Runs(n, s, r)
	if err != nil {
		r.Fill(mapfile.Missing)
	} else {
		r.Fill(mapfile.Hole)
	}
	k.take(r.List)
	k.end()
	if err == nil {
		err = k.comp.gap()
	}
	if err = cmp.Or(err, sumErr); err != nil {
		k.fail(rec.Path, rec.Stream, "content", err)
	}
	if c := &k.comp; c.usable+c.missing+c.encrypted > 0 {
		k.content.files++
		if c.usable+c.missing == 0 {
			k.content.locked++
		}
	}
}

// take turns runs into extents.
func (k *worker) take(list []Run) {
	for i := range list {
		r := &list[i]
		if k.node.Encrypted && r.Kind != mapfile.Hole && r.Kind != mapfile.Missing {
			if r.Kind != mapfile.Data {
				r.Off = 0
			}
			r.Kind = mapfile.Encrypted
		}
		k.comp.run(r)
	}
}
