package zfs

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestPaceNext is what follows from one program, and from the one with a single snapshot
// that comes after it where it took long.
func TestPaceNext(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		most   int // 0: nothing known
		wait   time.Duration
		sure   int
		n      int
		took   time.Duration
		single time.Duration // what the program with one snapshot takes; 0: none is to follow
		want   int
		rest   time.Duration
	}{
		"quick, and nothing known":                      {0, 0, 0, 10, 100 * ms, 0, 20, 0},
		"quick and full":                                {100, 50 * ms, 9, 100, 100 * ms, 0, 200, 0},
		"quick, but half empty":                         {200, 50 * ms, 9, 110, 100 * ms, 0, 200, 0},
		"quick with nearly the most":                    {800, 50 * ms, 9, 800, 100 * ms, 0, 1000, 0},
		"quick with the most":                           {1000, 50 * ms, 9, 1000, 100 * ms, 0, 1000, 0},
		"it only waits":                                 {100, 1200 * ms, 9, 100, 1300 * ms, 0, 200, 0},
		"as long as it should":                          {200, 50 * ms, 9, 200, 500 * ms, 0, 200, 0},
		"longer, as times of waiting differ":            {200, 50 * ms, 9, 200, 1000 * ms, 0, 200, 0},
		"long, and it is unknown for how long it waits": {10, 0, 0, 10, 900 * ms, 850 * ms, 10, 0},
		"the same, and long ago that it was known":      {200, 50 * ms, 0, 200, 500 * ms, 400 * ms, 200, 0},
		"slow":                              {800, 50 * ms, 9, 800, 2060 * ms, 40 * ms, 200, 2 * time.Second},
		"slow, and what it does is not why": {800, 50 * ms, 9, 800, 1350 * ms, 1200 * ms, 800, 0},
		"slow with a few":                   {800, 50 * ms, 9, 300, 2060 * ms, 40 * ms, 75, 2 * time.Second},
		"slow with hardly any":              {800, 50 * ms, 9, 3, time.Minute, 50 * ms, 2, 5 * time.Second},
		"slow, and the pool hangs when it is looked at": {1000, 50 * ms, 9, 1000, 15 * time.Second, time.Minute, 37, 5 * time.Second},
	} {
		p, rest := pace{most: c.most, wait: c.wait, sure: c.sure}.next(ran{c.n, c.took}, PruneBatch)
		if single := p.size() == 1; single != (c.single != 0) {
			t.Errorf("%s: next is a single one: %v", name, single)
		}
		if c.single != 0 {
			p, rest = p.next(ran{1, c.single}, PruneBatch)
		}
		if rest != c.rest {
			t.Errorf("%s: a rest of %s, want %s", name, rest, c.rest)
		}
		if got := p.size(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// What is quicker with many than it was thought to wait says that it waits no longer so long.
func TestPaceWaitsLess(t *testing.T) {
	p := pace{most: 100, wait: pruneWait, sure: 9}
	p, _ = p.next(ran{100, 600 * time.Millisecond}, PruneBatch)
	if p, _ = p.next(ran{200, 2 * time.Second}, PruneBatch); p.size() != 1 {
		t.Errorf("two seconds are no work, and the next has %d", p.size())
	}
}

// pool is one on which writers force transaction groups. A program waits for the end of the
// group that is written and for its own, in which its work is done.
type pool struct {
	group func(now time.Duration) time.Duration
	cost  map[bool]time.Duration // to destroy a snapshot, by whether it is aged
	rng   *rand.Rand
	held  time.Duration // the longest that one program worked
	write time.Duration // the longest that a write waits that comes at the worst moment
}

func (p *pool) run(now time.Duration, n int, aged bool) time.Duration {
	group, work := p.group(now), time.Duration(n)*p.cost[aged]
	p.held = max(p.held, work)
	p.write = max(p.write, group+work+group)
	return 50*time.Millisecond + time.Duration(p.rng.Float64()*float64(group)) + group + work
}

// On a pool where snapshots come each second, pruning keeps up with them, also when it has a
// long history to destroy beside them, and no write waits for anything near the time after which
// the leases end.
func TestPaceOnPool(t *testing.T) {
	const ms = time.Millisecond
	const fence = 3 * time.Second // the shortest there is
	const life = 30 * time.Minute
	always := func(g time.Duration) func(time.Duration) time.Duration {
		return func(time.Duration) time.Duration { return g }
	}
	for _, c := range []struct {
		name        string
		second      int // come each second
		young, aged time.Duration
		group       func(time.Duration) time.Duration
		history     int           // aged ones, from the tenth minute on
		within      time.Duration // that is gone
	}{
		{"a quick pool", 1000, ms / 10, 5 * ms, always(50 * ms), 14_400, 7 * time.Minute},
		{"long groups", 300, ms / 3, 5 * ms, always(800 * ms), 5_000, 15 * time.Minute},
		{"long groups, and cold disks", 300, ms / 3, 15 * ms, always(800 * ms), 5_000, 15 * time.Minute},
		{"very cold disks", 50, ms, 50 * ms, always(200 * ms), 5_000, 15 * time.Minute},
		{"an emulated machine", 3, 92 * ms, 92 * ms, always(100 * ms), 1_000, 15 * time.Minute},
		{"writers come and go", 300, ms / 3, 15 * ms, func(now time.Duration) time.Duration {
			if now/time.Minute%4 < 2 {
				return 800 * ms
			}
			return 20 * ms
		}, 5_000, 10 * time.Minute},
		{"writers come and go, and cold disks", 10, 15 * ms, 50 * ms, func(now time.Duration) time.Duration {
			if now/time.Minute%4 < 2 {
				return 800 * ms
			}
			return 20 * ms
		}, 1_000, 10 * time.Minute},
	} {
		for seed := range uint64(5) {
			t.Run(c.name, func(t *testing.T) {
				p := &pool{group: c.group, cost: map[bool]time.Duration{false: c.young, true: c.aged}, rng: rand.New(rand.NewPCG(seed, 2))}
				paces := map[bool]pace{}
				var now, begun, ended time.Duration
				came, gone, most, history := 0, 0, 0, 0
				program := func(aged bool, left int) int {
					of := paceOf{aged: aged}
					n := min(left, paces[aged].size())
					took := p.run(now, n, aged)
					next, rest := paces[aged].next(ran{n, took}, of.limit())
					paces[aged], now = next, now+took+rest
					return n
				}
				for now < life {
					if begun == 0 && now > 10*time.Minute {
						begun, history = now, c.history
					}
					// A pass as the engine makes it.
					came = int(now.Seconds() * float64(c.second))
					most = max(most, came-gone)
					for pass := min(came-gone, 4*PruneBatch); pass > 0; {
						n := program(false, pass)
						pass, gone = pass-n, gone+n
					}
					for pass := min(history, 2*PruneAged); pass > 0; {
						n := program(true, pass)
						if pass, history = pass-n, history-n; history == 0 {
							ended = now
						}
					}
					now += 500 * ms
				}
				came = int(now.Seconds() * float64(c.second))
				t.Logf("at most %s of work, writes wait for %s, %d were too many at once and %d in the end; the history was gone after %s",
					p.held, p.write, most, came-gone, ended-begun)
				if p.held > 3*pruneWork || p.write > fence {
					t.Errorf("a program works for %s, and a write waits for %s", p.held, p.write)
				}
				if most > 40*c.second || came-gone > 10*c.second {
					t.Errorf("of %d each second %d were left at once, and %d in the end", c.second, most, came-gone)
				}
				if ended == 0 || ended-begun > c.within {
					t.Errorf("of the history %d are left after %s", history, ended-begun)
				}
			})
		}
	}
}
