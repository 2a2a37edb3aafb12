package sim

import (
	"flag"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/flocker-io/flocker/test/firstseed"
)

var (
	histories = flag.Int("histories", 50_000, "random fault histories to simulate")
	seedFlag  = flag.Uint64("seed", 0, "simulate only the history of this seed, and print it")
	ruleFlag  = flag.String("mutant", "", "with -seed: the rule that is broken in it")
)

// rules that a mutant lacks.
type rules struct {
	revive, fromAnswer, shortWait, hasty, noProof, forgetful, noPromise, bootMount, unverified,
	noRevoke, noLease, noCatchUp, guessStop, grantAgrees, anyReign, barredInArming, outlast bool
	first uint64 // seed to begin the search at, where it is rarely found
}

var mutants = map[string]rules{
	"a lease that ran out is revived":                         {revive: true, first: 19400},
	"the lease runs from the answer":                          {fromAnswer: true, first: 2250},
	"the leader waits for the lease only":                     {shortWait: true},
	"a new leader does not wait":                              {hasty: true},
	"beats are answered without proof":                        {noProof: true},
	"a leader answers for a lease that another has revoked":   {forgetful: true, first: 19500},
	"positions are asked for without a promise":               {noPromise: true, first: 2050},
	"a machine mounts at boot what it was primary of":         {bootMount: true},
	"the fencer does not verify that writers are gone":        {unverified: true},
	"volumes are promoted without the end of the lease":       {noRevoke: true},
	"a node writes what it is primary of without a lease":     {noLease: true},
	"a node does not catch up before it acts":                 {noCatchUp: true},
	"another boot in a beat is taken for the end of a lease":  {guessStop: true, first: 22100},
	"a grant is taken for the node's agreement":               {grantAgrees: true},
	"who has no lease is failed over while failover is armed": {barredInArming: true},
	"a leader that was deposed meanwhile ends leases by time": {anyReign: true, first: 11500},
	"a mount that outlasted a lease stands under the next":    {outlast: true},
}

type tally struct{ Leaders, Promotions, Fenced, Writes, Crashes, Moves, Armings int }

func (t *tally) add(o tally) {
	t.Leaders += o.Leaders
	t.Promotions += o.Promotions
	t.Fenced += o.Fenced
	t.Writes += o.Writes
	t.Crashes += o.Crashes
	t.Moves += o.Moves
	t.Armings += o.Armings
}

// TestOneWriter simulates many histories in which nothing may go wrong.
func TestOneWriter(t *testing.T) {
	if *seedFlag != 0 {
		w := newWorld(*seedFlag, mutants[*ruleFlag])
		w.verbose = true
		bad := w.run()
		t.Log(strings.Join(w.lines, "\n"))
		if bad != "" {
			t.Fatal(bad)
		}
		return
	}
	n := firstseed.Times(*histories)
	if testing.Short() {
		n = min(n, 500)
	}
	first := firstseed.Get()
	t.Logf("seeds from %d", first)
	var sum tally
	var mu sync.Mutex
	var all sync.WaitGroup
	workers := uint64(runtime.GOMAXPROCS(0))
	for k := range workers {
		all.Go(func() {
			for i := k; i < uint64(n) && !t.Failed(); i += workers {
				w := newWorld(first+i, rules{})
				if bad := w.run(); bad != "" {
					t.Errorf("%s\nagain with -run TestOneWriter -seed %d", bad, first+i)
				}
				mu.Lock()
				sum.add(w.tally)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("%d histories: %+v", n, sum)
	// A simulation in which nothing happens proves nothing.
	if sum.Promotions < n || sum.Fenced < n/2 || sum.Leaders < n || sum.Writes < 2*n || sum.Moves < n/10 || sum.Armings < n/2 {
		t.Errorf("too little has happened: %+v", sum)
	}
}

// TestMutants breaks one rule at a time. The checker must see it: otherwise it could not
// be trusted about the unbroken ones.
func TestMutants(t *testing.T) {
	for name, r := range mutants {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			// The seeds are fixed: that each is found is a property of the checker.
			const most = 20_000
			for seed := r.first + 1; seed <= r.first+most; seed++ {
				if bad := newWorld(seed, r).run(); bad != "" {
					t.Logf("found in history %d: %s", seed, bad)
					return
				}
			}
			t.Errorf("not found in %d histories from %d on: %s", most, r.first, name)
		})
	}
}
