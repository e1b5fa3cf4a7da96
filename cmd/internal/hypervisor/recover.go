package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vmkit/fsmap/mapfile"
)

// Recovered is the record of what was left of a freeze, and what became of it.
type Recovered struct {
	Type     string            `json:"type"` // "recovered"
	Name     string            `json:"name"`
	Target   string            `json:"target"`
	Journal  string            `json:"journal"`
	Undone   []string          `json:"undone"`         // the steps that were taken back, the last first
	Left     []string          `json:"left,omitempty"` // those that could not be
	Released *mapfile.Released `json:"released"`
}

func recovered(j *Journal) Recovered {
	r := Recovered{Type: "recovered", Name: j.VM.Name, Target: j.VM.Target, Journal: j.path, Released: j.Released}
	for _, s := range slices.Backward(j.Steps) {
		switch s.State {
		case "":
		case "undone":
			r.Undone = append(r.Undone, s.Op)
		default:
			r.Left = append(r.Left, s.Op)
		}
	}
	return r
}

// Recover finishes or takes back what earlier freezes left of machines that no process holds any more: of those
// named, by target or by name, or of all. Each journal that it worked on is reported; one that is held is an error
// of that report.
func (e *Engine) Recover(ctx context.Context, names []string, report func(Recovered, error)) error {
	list, errs := Journals(e.Dir)
	prune(list)
	for _, j := range list {
		if j.Ended || len(names) > 0 && !slices.Contains(names, j.VM.Target) && !slices.Contains(names, j.VM.Name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e.recover(ctx, j, report)
	}
	return errors.Join(errs...)
}

func (e *Engine) recover(ctx context.Context, j *Journal, report func(Recovered, error)) {
	lock, err := lockMachine(e.Dir, j.VM)
	if err != nil {
		report(recovered(j), err)
		return
	}
	defer lock.Close()
	// Its owner may have come to its end in between.
	path := j.path
	if j, err = loadJournal(path); err != nil {
		report(Recovered{Type: "recovered", Journal: path}, err)
		return
	}
	if j.Ended {
		return
	}
	if m := e.insist(context.WithoutCancel(ctx), nil, j); m != nil {
		m.Close()
	}
	if !j.Ended {
		err = fmt.Errorf("%s: %s", j.VM.Name, j.Released.Error)
	}
	report(recovered(j), err)
}
