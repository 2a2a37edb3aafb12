package zfs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// slowPool is a Host whose programs take their time, which is simulated: a little, and
// something for each snapshot.
type slowPool struct {
	*testing.T
	*zfs.Host
	calls func() [][]string
	cost  time.Duration // of one snapshot
	sizes []int         // how many the programs had
	began []time.Duration
	ended []time.Duration // since epoch
	epoch time.Time
}

func newSlowPool(t *testing.T, calls func() [][]string) *slowPool {
	s := &slowPool{T: t, calls: calls, cost: time.Millisecond / 10, epoch: time.Now()}
	s.Host = zfs.New(zfs.Options{Observe: func(_ string, _ []string, took time.Duration, _ error) {
		all := calls()
		n := strings.Count(fmt.Sprint(all[len(all)-1]), "@")
		s.sizes = append(s.sizes, n)
		s.began = append(s.began, time.Since(s.epoch)-took)
		time.Sleep(50*time.Millisecond + time.Duration(n)*s.cost)
		s.ended = append(s.ended, time.Since(s.epoch))
	}})
	return s
}

// prune destroys so many snapshots and says how many each program had.
func (s *slowPool) prune(pool string, n int, aged bool, cost time.Duration) []int {
	s.Helper()
	var reqs []zfs.PruneRequest
	for i := range n {
		reqs = append(reqs, zfs.PruneRequest{Snapshot: fmt.Sprintf("%s/a@%d", pool, i), Aged: aged})
	}
	s.cost, s.sizes, s.began, s.ended = cost, nil, nil, nil
	if failed, err := s.Prune(s.Context(), reqs); err != nil || len(failed) > 0 {
		s.Errorf("%v, %v", failed, err)
	}
	return s.sizes
}

func (s *slowPool) want(what string, got []int, want ...int) {
	s.Helper()
	if !slices.Equal(got, want) {
		s.Errorf("%s: programs of %v, want %v", what, got, want)
	}
}

// What programs have follows from how long those of this pool and kind took, one that failed
// says nothing good, and after one that worked for long there is a rest.
func TestPruneSlow(t *testing.T) {
	const quick, cold = time.Millisecond / 100, 15 * time.Millisecond
	replies := make([]reply, 64)
	for i := range replies {
		replies[i] = reply{0, `{"return":{}}`}
	}
	calls := install(t, replies)
	synctest.Test(t, func(t *testing.T) {
		s := newSlowPool(t, calls)
		s.want("more and more", s.prune("tank", 4000, false, quick), 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 730)
		s.want("in another pool", s.prune("dozer", 30, false, quick), 10, 20)
		s.want("aged ones, of which there are never many", s.prune("dozer", 90, true, quick), 10, 20, 30, 30)
		s.want("aged ones", s.prune("tank", 100, true, cold), 10, 20, 1, 20, 20, 20, 9)
		s.want("in a pool that has become slow", s.prune("tank", 1100, false, cold), 1000, 1, 33, 33, 33)
		for i, want := range []time.Duration{0, 5 * time.Second, 0, 0} {
			if got := s.began[i+1] - s.ended[i]; got != want {
				t.Errorf("rests of %s, want %s, after the programs of %v", got, want, s.sizes[:i+1])
			}
		}

		code := filepath.Join(os.Getenv("ZFS_TEST_DIR"), fmt.Sprint("code", len(calls())))
		if err := os.WriteFile(code, []byte("1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Prune(t.Context(), []zfs.PruneRequest{{Snapshot: "tank/a@1"}}); err == nil {
			t.Error("nothing failed")
		}
		s.want("after a failure", s.prune("tank", 30, false, quick), 10, 20)

		// The rest outlives the call, and whoever gives up during it has done nothing.
		s.want("very slow ones", s.prune("tank", 21, true, 2*time.Second), 20, 1)
		ended := s.ended[1]
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := len(calls())
		if _, err := s.Prune(ctx, []zfs.PruneRequest{{Snapshot: "tank/a@1"}}); !errors.Is(err, context.DeadlineExceeded) || len(calls()) != before {
			t.Errorf("given up: %v, after %d commands", err, len(calls())-before)
		}
		s.want("in another pool", s.prune("dozer", 1, false, quick), 1)
		if got := s.began[0] - ended; got != time.Second {
			t.Errorf("another pool rests for %s", got)
		}
		s.want("at last", s.prune("tank", 1, false, quick), 1)
		if got := s.began[0] - ended; got != 5*time.Second {
			t.Errorf("a program came after %s", got)
		}
	})
}
