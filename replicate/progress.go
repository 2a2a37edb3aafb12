package replicate

import "time"

// rateOver is the time that a rate is the average of.
const rateOver = 5 * time.Second

// meter says how fast bytes have passed of late. The zero value is ready.
type meter struct {
	second int64 // since 1970, of the newest in sums
	sums   [int(rateOver/time.Second) + 1]int64
}

// turn moves on to the second of now and forgets what is too long ago.
func (m *meter) turn(now time.Time) {
	s := now.Unix()
	if s < m.second-int64(len(m.sums)) {
		*m = meter{second: s} // the clock was set back, and would not forget anything until it is there again
	}
	for range min(max(s-m.second, 0), int64(len(m.sums))) {
		copy(m.sums[1:], m.sums[:])
		m.sums[0] = 0
	}
	m.second = max(m.second, s)
}

func (m *meter) add(now time.Time, n int) {
	m.turn(now)
	m.sums[0] += int64(n)
}

// rate is in bytes a second, of what began then. When nothing has passed for rateOver
// it is 0.
func (m meter) rate(now, began time.Time) int64 {
	m.turn(now)
	var sum float64
	for _, n := range m.sums {
		sum += float64(n)
	}
	// Of the oldest second only what is not yet rateOver ago.
	part := now.Sub(now.Truncate(time.Second)).Seconds()
	sum -= part * float64(m.sums[len(m.sums)-1])
	over := min(max(now.Sub(began), time.Second), rateOver)
	return int64(sum / over.Seconds())
}

// plausible says whether an estimate of zfs may be shown where guess is what the
// listing says. zfs has been seen to estimate exabytes.
func plausible(estimate, guess int64) bool {
	const most = 16
	return estimate > 0 && estimate/most <= max(guess, longStream)
}
