package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// Of many volumes a few are asked for at the same time, and when it is interrupted no more are.
func TestCreateEach(t *testing.T) {
	var names []string
	for n := range 3*createAtOnce + 4 {
		names = append(names, fmt.Sprintf("t%d", n+1))
	}
	for _, tt := range []struct {
		interrupt time.Duration // 0: never
		took      time.Duration
		begun     int
	}{
		{0, 4 * time.Second, len(names)},
		{1500 * time.Millisecond, 1500 * time.Millisecond, 2 * createAtOnce},
		{time.Nanosecond, time.Nanosecond, createAtOnce},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.interrupt > 0 {
				time.AfterFunc(tt.interrupt, cancel)
			}
			asked, began := make(chan string, len(names)), time.Now()
			all := createEach(ctx, names, func(ctx context.Context, name string) (api.Volume, error) {
				asked <- name
				select {
				case <-time.After(time.Second):
					return api.Volume{Name: name}, nil
				case <-ctx.Done():
					return api.Volume{}, context.Cause(ctx)
				}
			})
			if took := time.Since(began); took != tt.took || len(all) != tt.begun || len(asked) != tt.begun {
				t.Errorf("interrupted after %s: %d begun, %d asked for, in %s; want %d, in %s", tt.interrupt, len(all), len(asked), took, tt.begun, tt.took)
			}
			for i, c := range all {
				if c.name != names[i] || (c.err == nil) != (c.volume.Name == names[i]) {
					t.Errorf("interrupted after %s: of %s became %+v", tt.interrupt, names[i], c)
				}
			}
		})
	}
}

func TestNothingIsBegunWhenItIsOver(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if all := createEach(ctx, []string{"a", "b"}, func(context.Context, string) (api.Volume, error) { return api.Volume{}, errors.New("it was asked for") }); len(all) != 0 {
		t.Errorf("begun: %+v", all)
	}
}

// Clones of one snapshot have the same data.
func TestOfOneSnapshot(t *testing.T) {
	failed := errors.New("failed")
	of := func(guid uint64) created { return created{volume: api.Volume{From: &api.CloneOf{GUID: guid}}} }
	for _, tt := range []struct {
		all   []created
		wrong []int
	}{
		{nil, nil},
		{[]created{{err: failed}, {err: failed}}, nil},
		{[]created{of(7), {err: failed}, of(7)}, nil},
		{[]created{{err: failed}, of(7), of(8), of(7), of(9)}, []int{2, 4}},
		{[]created{of(7), {}}, []int{1}}, // one that is no clone
	} {
		got := slices.Clone(tt.all)
		for i := range got {
			got[i].name = fmt.Sprintf("t%d", i)
		}
		ofOneSnapshot(got)
		for i, c := range got {
			switch wrong := slices.Contains(tt.wrong, i); {
			case !wrong && c.err != tt.all[i].err:
				t.Errorf("%+v: %s: %v", tt.all, c.name, c.err)
			case wrong && (volume.CodeOf(c.err) != volume.CodeConflict || !strings.Contains(c.err.Error(), "of another snapshot than")):
				t.Errorf("%+v: %s: got %v", tt.all, c.name, c.err)
			}
		}
	}
}

// Each failure says whose it is, and what was not begun is counted.
func TestSayCreated(t *testing.T) {
	refused, gone := volume.Errorf(volume.CodeConflict, "refused"), volume.Errorf(volume.CodeNotFound, "gone")
	made := func(name string) created { return created{name: name, volume: api.Volume{Name: name}} }
	for _, tt := range []struct {
		what        string
		all         []created
		left        []string
		over        error
		out, errors string
		code        int
	}{
		{"all are made", []created{made("a"), made("b")}, nil, nil, "a|b|", "", exitOK},
		{"over, but all are made", []created{made("a")}, nil, context.Canceled, "a|", "", exitOK},
		{"the first failure says the code", []created{{name: "a", err: refused}, made("b"), {name: "c", err: gone}}, nil, nil,
			"b|", "flockctl: a: refused|flockctl: c: gone|", exitConflict},
		{"interrupted", []created{made("a"), {name: "b", err: context.Canceled}}, []string{"c", "d"}, context.Canceled,
			"a|", "flockctl: b: interrupted: what was asked may still happen|flockctl: interrupted: 2 of 4 were not begun, from c on: the same command again makes what is missing|", exitError},
		{"interrupted before all", nil, []string{"a"}, context.Canceled,
			"", "flockctl: interrupted: 1 of 1 were not begun, from a on: the same command again makes what is missing|", exitError},
		{"no time left", []created{made("a")}, []string{"b"}, context.DeadlineExceeded,
			"a|", "flockctl: no time was left: 1 of 2 were not begun, from b on: the same command again makes what is missing|", exitTimeout},
	} {
		var out, said strings.Builder
		a := &app{world: world{stdout: &out, stderr: &said, now: time.Now}}
		err := a.sayCreated(tt.all, tt.left, tt.over)
		a.printError(err) // not again
		plain := func(s *strings.Builder) string { return strings.ReplaceAll(s.String(), "\n", "|") }
		if plain(&out) != tt.out || plain(&said) != tt.errors || exitCode(err) != tt.code {
			t.Errorf("%s: got %q, %q and %d; want %q, %q and %d", tt.what, plain(&out), plain(&said), exitCode(err), tt.out, tt.errors, tt.code)
		}
	}
}
