package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// What is left for the pause when a volume moves under a writer that goes on: the last
// increment, for different rates of writing. It should follow the rate, and stay far below
// what the volume holds.
func TestConverge(t *testing.T) {
	b := start(t, 2)
	const pieces = 64
	for _, kib := range []int{0, 128, 512, 2048} {
		name := fmt.Sprintf("writer-%d", kib) // what a container leaves on a node keeps its name there
		// Half a second's worth of what does not compress goes into one of its files, over and over.
		write := fmt.Sprintf("dd if=/dev/urandom of=/d/$((i %% %d)) bs=1k count=%d conv=fsync 2>/dev/null", pieces, kib/2)
		if kib == 0 {
			write = ":"
		}
		b.n1.Flockctl("volume", "create", "--replicas", "1", name)
		b.n1.Sh("docker run -d --name " + name + " --init --label flocker.enable=true --mount type=volume,volume-driver=flocker,src=" + name +
			",dst=/d flocker-test/busybox:1 sh -c 'i=0; while :; do " + write + "; i=$((i + 1)); sleep 0.5; done'")
		b.Until("the container to be ready to follow", later, func() error { return follows(b.n1, name) })
		b.inSync()
		written := b.written(name)
		begin := time.Now()
		if kib > 0 {
			b.Until("some megabytes to be written", later, func() error {
				if now := b.written(name); now-written < 8*1024*float64(kib) {
					return fmt.Errorf("%.0f bytes so far", now-written)
				}
				return nil
			})
		}
		rate := (b.written(name) - written) / time.Since(begin).Seconds()
		m, err := lab.Ask[api.Migration](b.n1, "migrate", "--max-pause", "1m", name, b.n2.Name)
		if err != nil {
			t.Fatal(err)
		}
		if m.State != api.MigrationDone || m.Times == nil || m.Times.Copy == 0 {
			t.Fatalf("it ended with %+v", m)
		}
		t.Logf("%d KiB/s wanted: %+v", kib, m)
		b.row(fmt.Sprintf("a volume moves under a writer of %.0f KiB a second", rate/1024), fmt.Sprintf("the last increment takes %.1f s of a pause; stop %.1f s, unmount %.1f s; all of it, rounds ahead included, %.0f s",
			m.Times.Copy, m.Times.Stop, m.Times.Unmount, m.Ended.Sub(m.Began).Seconds()), "", "", "")
		b.n2.Sh("docker rm -f " + name)
		b.n2.Flockctl("volume", "rm", "--yes", name)
	}
}

// written is what was ever written to a volume on n1, in bytes, as its file system counts.
func (b rig) written(name string) float64 {
	b.Helper()
	v, err := b.n1.Volume(name)
	if err != nil {
		b.Fatal(err)
	}
	return b.numbers(b.n1, "cat /proc/spl/kstat/zfs/tank/objset-* | awk '$1 == \"dataset_name\" { on = $3 == \"tank/flocker/"+string(v.ID)+"\" } $1 == \"nwritten\" && on { print $3 }'")[0]
}
