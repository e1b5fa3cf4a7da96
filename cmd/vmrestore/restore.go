package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
)

func (o *options) run(ctx context.Context, t *cli.Term, args []string) error {
	act, err := o.check(args)
	if err != nil {
		return err
	}
	s, err := repo.OpenStore(ctx, o.repo, false)
	if err != nil {
		return err
	}
	defer s.Close()
	return act(ctx, t, s, args)
}

// action is one thing that the command can be asked for.
type action func(context.Context, *cli.Term, repo.Store, []string) error

// check finds out what is asked for, and checks what belongs together.
func (o *options) check(args []string) (action, error) {
	var chosen []action
	for _, x := range []struct {
		on bool
		do action
	}{{o.asMap, o.printMap}, {o.history != "", o.printHistory}, {o.diff, o.printDiff}, {o.image, o.restoreImage}, {o.boot, o.printBoot}} {
		if x.on {
			chosen = append(chosen, x.do)
		}
	}
	ways := o.out.Ways()
	if o.into != "" {
		ways++
	}
	files := len(args) > 0 && strings.Contains(args[0], "@")
	switch {
	case o.repo == "":
		return nil, cli.Usagef("--repo names the repository")
	case len(chosen) > 1:
		return nil, cli.Usagef("--map, --history, --diff, --image and --boot-command exclude each other")
	case o.to != "" && o.into == "":
		return nil, cli.Usagef("--to goes with --into")
	case !o.image && (o.output != "" || o.disk != "" || o.format != ""):
		return nil, cli.Usagef("-o, --disk and --format go with --image")
	case len(chosen) == 0 && files:
		if ways != 1 {
			return nil, cli.Usagef("one of -C, --tar, --cat and --into says where the files go")
		}
		return o.restoreFiles, o.out.Check()
	case o.image:
		return o.restoreImage, o.checkImage(args)
	case ways > 0:
		return nil, cli.Usagef("-C, --tar, --cat and --into are for files, as in web1@latest:/etc, or with --image")
	}
	want, what := 1, "MACHINE@POINT"
	switch {
	case len(chosen) == 0:
		if len(args) > 1 {
			return nil, cli.Usagef("one MACHINE at a time")
		}
		return o.list, nil
	case o.history != "":
		what = "MACHINE"
	case o.diff:
		want, what = 2, "two of MACHINE@POINT"
	}
	if len(args) != want {
		return nil, cli.Usagef("%s is wanted", what)
	}
	return chosen[0], nil
}

// point is a chosen point of a machine.
type point struct {
	*repo.Point
	chain []*repo.Point // it and what it builds on, the full one first
}

// findPoint finds the point of MACHINE@POINT.
func findPoint(ctx context.Context, t *cli.Term, s repo.Store, arg string) (*point, error) {
	machine, name, ok := strings.Cut(arg, "@")
	if !ok || machine == "" || name == "" {
		return nil, cli.Usagef("%q is not of the form MACHINE@POINT", arg)
	}
	points, err := readPoints(ctx, t, s, machine)
	if err != nil {
		return nil, err
	}
	return choose(points, machine, name)
}

func choose(points []*repo.Point, machine, name string) (*point, error) {
	p, err := repo.Choose(points, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", machine, err)
	}
	chain, err := repo.Lineage(points, p)
	if err != nil {
		return nil, err
	}
	return &point{p, chain}, nil
}

// readPoints gives the points of a machine. Those that can't be read are told of.
func readPoints(ctx context.Context, t *cli.Term, s repo.Store, machine string) ([]*repo.Point, error) {
	points, err := repo.Points(ctx, s, machine)
	if len(points) == 0 {
		if err == nil {
			err = fmt.Errorf("%s: there is no machine %q, or it has no point", s.URL(), machine)
		}
		return nil, err
	}
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		for _, err := range many.Unwrap() {
			t.Warn("%v", err)
		}
		t.Note(cli.Gaps)
	}
	return points, ctx.Err()
}

// again runs f, and once more where a point's files were replaced while they were being opened: vmprune may be at work.
func again(f func() error) error {
	var err error
	for range 3 {
		if err = f(); !errors.Is(err, repo.ErrChanged) && !errors.Is(err, repo.ErrNotExist) {
			break
		}
	}
	return err
}
