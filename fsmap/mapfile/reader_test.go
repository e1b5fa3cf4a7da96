package mapfile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

const headText = `{"type":"map","version":1,"created":"1970-01-01T00:00:00Z"}
{"type":"image","id":0,"name":"a","format":"raw","size":9,"files":[{"id":0,"path":"a.img","size":9}]}
{"type":"volume","id":0,"name":"disk","kind":"disk","start":0,"size":9,"image":0}
`

const endText = `{"type":"end","files":0,"bytes":0,"problems":0}` + "\n"

func drain(s string) (n int, err error) {
	r := NewReader(strings.NewReader(s))
	for {
		if _, err = r.Next(); err != nil {
			return n, err
		}
		n++
	}
}

func TestReaderAccepts(t *testing.T) {
	for name, s := range map[string]string{
		"two maps":            headText + endText + headText + endText,
		"white space":         `{ "problems" : 0 , "type" : "end" }` + "\n",
		"nulls":               `{"type":"problem","volume":null,"what":"x"}` + "\n" + endText,
		"unknown type":        `{"type":"x","a":{"b":[1,-2.5e3,true,null,"\ud83d\ude00"]}}` + "\n" + endText,
		"hold after end":      `{"type":"vm","name":"web1"}` + "\n" + `{"type":"end","vms":1}` + "\n" + `{"type":"hold","seconds":1}` + "\n",
		"unread file":         headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","size":5}` + "\n" + endText,
		"volume's extents":    headText + `{"type":"extents","volume":0,"extents":[{"at":0,"len":4,"kind":"zero"}],"more":true}` + "\n" + `{"type":"extents","volume":0,"extents":[{"at":4,"len":5,"kind":"zero"}]}` + "\n" + endText,
		"only disk positions": headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","size":5,"extents":[{"at":0,"len":5,"kind":"data","disk":3}]}` + "\n" + endText,
		"largest numbers":     headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","inode":18446744073709551615,"size":9223372036854775807}` + "\n" + endText,
	} {
		if _, err := drain(s); err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	file := func(rest string) string {
		return headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","size":10,` + rest + "}\n" + endText
	}
	deep := `{"len":10,"kind":"zero"}`
	for range MaxDepth + 1 {
		deep = `{"len":10,"kind":"packed","codec":"zlib","full":10,"parts":[` + deep + `]}`
	}
	for name, tt := range map[string]struct{ in, want string }{
		"not an object":          {"[]\n", "'{' expected"},
		"no type":                {"{}\n", "type"},
		"not UTF-8":              {"{\"type\":\"\xff\"}\n", "UTF-8"},
		"two objects":            {`{"type":"x"}{}` + "\n", "more after"},
		"NUL behind":             {"{\"type\":\"x\"}\x00\n", "more after"},
		"control character":      {"{\"type\":\"x\ty\"}\n", "control"},
		"lone surrogate":         {`{"type":"x\ud800"}` + "\n", "surrogate"},
		"missing comma":          {`{"type":"x" "a":1}` + "\n", "expected"},
		"trailing comma":         {`{"type":"x",}` + "\n", "expected"},
		"bad number":             {`{"type":"x","a":01}` + "\n", "expected"},
		"bad literal":            {`{"type":"x","a":nul}` + "\n", "expected"},
		"nested":                 {`{"type":"x","a":` + strings.Repeat("[", 100000) + "\n", "nested"},
		"long line":              {`{"type":"x","a":"` + strings.Repeat("a", MaxLine) + `"}` + "\n", "longer than"},
		"map in map":             {headText + headText, "before the end"},
		"version":                {`{"type":"map","version":2}` + "\n", "version 2"},
		"file outside":           {`{"type":"file","volume":0,"path":"/a","kind":"regular","size":0}` + "\n", "outside a map"},
		"volume unknown":         {headText + `{"type":"file","volume":1,"path":"/a","kind":"regular","size":0}` + "\n", "volume 1"},
		"image twice":            {headText + `{"type":"image","id":0,"size":1}` + "\n", "twice"},
		"host file twice":        {headText + `{"type":"image","id":1,"size":1,"files":[{"id":0,"path":"b","size":1}]}` + "\n", "twice"},
		"volume twice":           {headText + `{"type":"volume","id":0,"name":"p","size":1}` + "\n", "twice"},
		"volume of no image":     {headText + `{"type":"volume","id":1,"name":"p","size":1,"image":7}` + "\n", "image 7"},
		"volume in none":         {headText + `{"type":"volume","id":1,"name":"p","size":1,"in":7}` + "\n", "volume 7"},
		"no path":                {headText + `{"type":"file","volume":0,"kind":"regular","size":0}` + "\n", "path"},
		"kind":                   {headText + `{"type":"file","volume":0,"path":"/a","kind":"door","size":0}` + "\n", "kind"},
		"negative size":          {headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","size":-1}` + "\n", "negative"},
		"fraction":               {headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","size":1.5}` + "\n", "integer"},
		"exponent":               {headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","size":1e3}` + "\n", "integer"},
		"beyond 64 bits":         {headText + `{"type":"file","volume":0,"path":"/a","kind":"regular","size":9223372036854775808}` + "\n", "too large"},
		"mode":                   {file(`"mode":"9"`), "octal"},
		"mode a number":          {file(`"mode":420`), "expected"},
		"rdev":                   {file(`"rdev":"8"`), "MAJOR"},
		"sha256":                 {file(`"sha256":"00"`), "hexadecimal"},
		"time":                   {file(`"mtime":"yesterday"`), "RFC 3339"},
		"base64":                 {file(`"path_base64":"*"`), "base64"},
		"gap":                    {file(`"extents":[{"at":0,"len":4,"kind":"zero"},{"at":5,"len":5,"kind":"zero"}]`), "expected at 4"},
		"overlap":                {file(`"extents":[{"at":0,"len":4,"kind":"zero"},{"at":3,"len":7,"kind":"zero"}]`), "expected at 4"},
		"short":                  {file(`"extents":[{"at":0,"len":4,"kind":"zero"}]`), "end at 4"},
		"past the size":          {file(`"extents":[{"at":0,"len":11,"kind":"zero"}]`), "past the size"},
		"overflow":               {file(`"extents":[{"at":0,"len":9223372036854775807,"kind":"data","disk":1,"file":0,"off":1}]`), "too large"},
		"no length":              {file(`"extents":[{"at":0,"len":0,"kind":"zero"}]`), "length"},
		"extent kind":            {file(`"extents":[{"at":0,"len":10,"kind":"magic"}]`), "unknown kind"},
		"unknown host file":      {file(`"extents":[{"at":0,"len":10,"kind":"data","disk":1,"file":3,"off":1}]`), "host file 3"},
		"unknown image":          {file(`"extents":[{"at":0,"len":10,"kind":"data","image":3,"disk":1,"file":0,"off":1}]`), "image 3"},
		"data without off":       {file(`"extents":[{"at":0,"len":10,"kind":"data","disk":1,"file":0}]`), "file and off"},
		"data nowhere":           {file(`"extents":[{"at":0,"len":10,"kind":"data"}]`), "without a place"},
		"inline length":          {file(`"extents":[{"at":0,"len":10,"kind":"inline","base64":"AAAA"}]`), "holds 3"},
		"inline without":         {file(`"extents":[{"at":0,"len":10,"kind":"inline"}]`), "holds 0"},
		"packed without":         {file(`"extents":[{"at":0,"len":10,"kind":"packed"}]`), "packed"},
		"no parts":               {file(`"extents":[{"at":0,"len":10,"kind":"packed","codec":"zlib","full":10,"parts":[]}]`), "packed"},
		"past full":              {file(`"extents":[{"at":0,"len":10,"kind":"packed","codec":"zlib","skip":1,"full":10,"parts":[{"len":1,"kind":"zero"}]}]`), "past full"},
		"part with a position":   {file(`"extents":[{"at":0,"len":10,"kind":"packed","codec":"zlib","full":10,"parts":[{"at":0,"len":1,"kind":"zero"}]}]`), "part with"},
		"deep parts":             {file(`"extents":[{"at":0,` + deep[1:] + `]`), "deeper"},
		"too many extents":       {file(`"extents":[{"at":0,"len":1,"kind":"zero"}` + strings.Repeat(`,{"at":1,"len":1,"kind":"zero"}`, MaxExtents) + `]`), "more than 1024"},
		"more without":           {file(`"more":true`), "go on"},
		"extents of nothing":     {headText + `{"type":"extents","volume":0,"path":"/a","extents":[{"at":0,"len":1,"kind":"zero"}]}` + "\n", "continues nothing"},
		"extents of another":     {strings.Replace(file(`"more":true`), endText, `{"type":"extents","volume":0,"path":"/b","extents":[{"at":0,"len":10,"kind":"zero"}]}`+"\n", 1), "go on"},
		"empty extents":          {strings.Replace(file(`"more":true`), endText, `{"type":"extents","volume":0,"path":"/a","extents":[]}`+"\n", 1), "without extents"},
		"volume's files divided": {headText + `{"type":"volume","id":1,"name":"p","kind":"partition","start":0,"size":9,"image":0}` + "\n" + strings.Repeat(`{"type":"file","volume":0,"path":"/a","kind":"fifo"}`+"\n"+`{"type":"file","volume":1,"path":"/a","kind":"fifo"}`+"\n", 2), "not together"},
	} {
		_, err := drain(tt.in)
		if err == nil || err == io.EOF || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; should say %q", name, err, tt.want)
		}
	}
}

func TestCutStream(t *testing.T) {
	whole := headText + `{"type":"file","volume":0,"path":"/a","kind":"fifo","size":0}` + "\n" + endText
	for n := range len(whole) {
		if _, err := drain(whole[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if n, err := drain(whole); n != 5 || err != io.EOF {
		t.Fatal(n, err)
	}
}

// TestReaderErrorSticks: what comes after bad input can't be used.
func TestReaderErrorSticks(t *testing.T) {
	r := NewReader(strings.NewReader("[]\n" + endText))
	_, err1 := r.Next()
	_, err2 := r.Next()
	if err1 == nil || err1 != err2 {
		t.Error(err1, err2)
	}
}

func BenchmarkReader(b *testing.B) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	head(w)
	f := sampleFile()
	f.Volume = 0
	const n = 1000
	for range n {
		w.File(f)
	}
	w.End(&End{})
	b.ReportAllocs()
	b.SetBytes(int64(buf.Len()))
	for b.Loop() {
		r := NewReader(bytes.NewReader(buf.Bytes()))
		for {
			if _, err := r.Next(); err != nil {
				if err != io.EOF {
					b.Fatal(err)
				}
				break
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/record")
}

// FuzzReader: whatever the stream holds, reading it ends, and what was read can be written and read again.
func FuzzReader(f *testing.F) {
	f.Add([]byte(headText + endText))
	f.Add([]byte(headText + `{"type":"file","volume":0,"path":"/a\ud83d\ude00","path_base64":"L/8=","inode":5,"kind":"symlink","size":10,"mode":"0777","uid":0,"mtime":"2026-01-01T00:00:00.5Z","target":"x","rdev":"8:1","xattrs":{"user.a":"AA=="},"xattrs_base64":{"/w==":""},"attrs":["immutable"],"new":1,"extents":[{"at":0,"len":4,"kind":"inline","base64":"AAAAAA=="},{"at":4,"len":6,"kind":"packed","codec":"aes-xts-plain64","sector":512,"iv":7,"key":"k","skip":1,"full":9,"parts":[{"len":9,"kind":"data","image":0,"disk":1,"file":0,"off":2}]}],"more":true}` + "\n" +
		`{"type":"extents","volume":0,"path":"/a","path_base64":"L/8=","extents":[{"at":10,"len":1,"kind":"hole"}]}` + "\n" + endText))
	f.Add([]byte(`{"type":"result","volume":1,"name":"p1","path":"/b","status":"ok","size":5,"sha256":"` + strings.Repeat("0", 64) + `"}` + "\n" + `{"type":"end","ok":1}` + "\n"))
	f.Add([]byte(`{"type":"finding","what":"size","path":"/b","expected":"1","found":"2"}` + "\n" + `{"type":"end","checked":1}` + "\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		first, err := rewrite(in)
		if err != nil {
			return
		}
		second, err := rewrite(first)
		if err != nil {
			t.Fatalf("what was read can't be read again: %v\n%s", err, first)
		}
		if !bytes.Equal(first, second) {
			t.Fatalf("written twice, differs:\n%s\n%s", first, second)
		}
	})
}

// rewrite reads a stream and writes its records anew.
func rewrite(in []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	r := NewReader(bytes.NewReader(in))
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return buf.Bytes(), w.Flush()
		}
		if err != nil {
			return nil, err
		}
		switch x := rec.(type) {
		case *Map:
			err = w.Map(x)
		case *Image:
			err = w.Image(x)
		case *Volume:
			err = w.Volume(x)
		case *File:
			err = w.File(x)
		case *Extents:
			err = w.Extents(x)
		case *Problem:
			err = w.Problem(x)
		case *Result:
			err = w.Result(x)
		case *Finding:
			err = w.Finding(x)
		case *End:
			err = w.End(x)
		case *Other:
			err = w.Other(x)
		default:
			err = os.ErrInvalid
		}
		if err != nil {
			return nil, err
		}
	}
}
