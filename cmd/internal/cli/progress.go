package cli

import (
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Progress shows how far a run is. A nil Progress shows nothing.
type Progress struct {
	t    *Term
	bar  *progressbar.ProgressBar
	n    atomic.Int64
	stop chan struct{}
}

// Progress begins to show progress of total (or -1) bytes, or with files true files, where the user wants to see it.
// Call Done at its end.
func (t *Term) Progress(what string, total int64, files bool) *Progress {
	if !t.progress {
		return nil
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(t.Stderr),
		progressbar.OptionSetDescription(t.Name + ": " + Printable(what)),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionShowCount(),
		progressbar.OptionSetWidth(20),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionSetSpinnerChangeInterval(0), // or it draws by itself, between our clearing and our message
	}
	if files {
		options = append(options, progressbar.OptionSetItsString("files"), progressbar.OptionShowIts())
	} else {
		options = append(options, progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true))
	}
	p := &Progress{t: t, bar: progressbar.NewOptions64(total, options...), stop: make(chan struct{})}
	t.mu.Lock()
	t.bar = p
	t.mu.Unlock()
	go p.run()
	return p
}

// Add counts n more. It is cheap enough for every file.
func (p *Progress) Add(n int64) {
	if p != nil {
		p.n.Add(n)
	}
}

// run draws the bar now and then, so that Add needs no lock.
func (p *Progress) run() {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.t.mu.Lock()
			if p.t.bar == p {
				p.bar.Set64(p.n.Load())
			}
			p.t.mu.Unlock()
		case <-p.stop:
			return
		}
	}
}

// clear takes the bar off the terminal for a message; Term.mu is held.
func (p *Progress) clear() {
	if p != nil {
		p.bar.Clear()
	}
}

// Done takes the bar away. More calls do nothing.
func (p *Progress) Done() {
	if p == nil {
		return
	}
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if p.t.bar == p {
		p.t.bar = nil
		close(p.stop)
		p.bar.Clear()
	}
}
