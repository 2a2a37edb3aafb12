package state

import (
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// MigrateAttempt begins the attempts of the handoffs that a migration asks for.
const MigrateAttempt = "migrate-"

// Commands of migrations.
type (
	// StartMigration notes that an operator wants a volume, with all that runs on it and
	// follows it, on the node To. The leader does what it takes, one step at a time, until
	// EndMigration.
	StartMigration struct {
		ID      volume.ID     `json:"id"`
		To      volume.NodeID `json:"to"`
		Attempt string        `json:"attempt"`
		// MaxPause, see BeginHandoff.
		MaxPause time.Duration `json:"max_pause,omitempty"`
	}
	// EndMigration ends one: To is the primary and runs what followed, or, with a Reason,
	// it is given up, and with it a handoff that has not been committed.
	EndMigration struct {
		ID      volume.ID `json:"id"`
		Attempt string    `json:"attempt"`
		Reason  string    `json:"reason,omitempty"`
	}
)

func (StartMigration) kind() string { return "start-migration" }
func (EndMigration) kind() string   { return "end-migration" }

func (t *txn) startMigration(c StartMigration) Result {
	v := t.s.Volume(c.ID)
	if v == nil {
		return failed(volume.CodeNotFound, "no volume %s", c.ID)
	}
	if m := v.Migration; m != nil {
		if m.To == c.To {
			return Result{Volume: v.ID} // somebody else asked for the same
		}
		return failed(volume.CodeConflict, "volume %q is being migrated to %s already", v.Name, t.s.NodeName(m.To))
	}
	if r := begin(*v, "migration"); r != nil {
		return *r
	}
	switch n := t.s.Node(c.To); {
	case n == nil || n.Removed || n.Lost:
		return failed(volume.CodeNotFound, "no node %s", c.To)
	case n.Witness:
		return failed(volume.CodeRefused, "volume %q: node %s has no pool", v.Name, n.Name)
	case n.Availability == Drain:
		return failed(volume.CodeRefused, "volume %q: node %s is being drained and takes no volumes", v.Name, n.Name)
	case v.Placement.Primary == c.To:
		return failed(volume.CodeConflict, "volume %q is on %s already", v.Name, n.Name)
	case c.Attempt == "":
		return failed(volume.CodeInvalid, "volume %q: a migration needs a name", v.Name)
	}
	next := *v
	next.Migration = &Migration{To: c.To, From: v.Placement.Primary, Attempt: c.Attempt, Began: t.at, MaxPause: c.MaxPause}
	t.putVolume(next)
	t.event(Event{Kind: "volume.migrating", Volume: v.ID, Name: v.Name, Node: c.To,
		Message: fmt.Sprintf("volume %s is to go from %s to %s", v.Name, t.s.NodeName(v.Placement.Primary), t.s.NodeName(c.To))})
	return Result{Volume: v.ID}
}

func (t *txn) endMigration(c EndMigration) Result {
	v := t.s.Volume(c.ID)
	if v == nil || v.Migration == nil || v.Migration.Attempt != c.Attempt {
		return failed(volume.CodeConflict, "volume %s: this migration is over", c.ID)
	}
	to := v.Migration.To
	if c.Reason == "" && (v.Placement.Primary != to || v.Phase != PhaseActive) {
		return failed(volume.CodeConflict, "volume %q is not on %s yet", v.Name, t.s.NodeName(to))
	}
	if p := v.Pending; v.Phase == PhaseMoving && p != nil && p.Attempt == MigrateAttempt+c.Attempt {
		if r := t.abort(v.ID, v.Epoch, p.Attempt, c.Reason, PhaseMoving, "volume.move-refused"); r.Err != nil {
			return r
		}
		v = t.s.Volume(c.ID)
	}
	next := *v
	t.overMigration(&next, c.Reason)
	t.putVolume(next)
	return Result{Volume: v.ID}
}

func (t *txn) openRoutes(c OpenRoutes) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	m := v.Moved
	if m == nil || m.Times.Held == 0 || !m.Opened.IsZero() {
		return Result{Volume: v.ID} // told already
	}
	moved := *m
	moved.Opened = t.at.Add(-max(c.Ago, 0))
	moved.Times.Arrival = c.Arrival
	v.Moved = &moved
	if last := v.LastMigration; last != nil && last.Reason == "" && moved.Attempt == MigrateAttempt+last.Attempt {
		ended := *last
		ended.Paused, ended.Times.Arrival = moved.Paused(), c.Arrival
		v.LastMigration = &ended
	}
	t.putVolume(v)
	t.event(Event{Kind: "volume.routes-open", Volume: v.ID, Name: v.Name, Node: v.Placement.Primary,
		Message: fmt.Sprintf("volume %s: the clients of its routes go on on %s; they waited for %.2f s%s", v.Name, t.s.NodeName(v.Placement.Primary), moved.Paused().Seconds(), moved.Times.parts(moved.Paused()))})
	return Result{Volume: v.ID}
}

// parts lists what a pause consisted of, for people; "" where the new primary did not tell.
func (t MoveTimes) parts(paused time.Duration) string {
	a := t.Arrival
	if a == (ArrivalTimes{}) {
		return ""
	}
	return fmt.Sprintf(": quiet %.2f, stop %.2f, unmount %.2f, last copy %.2f, commit %.2f, takeover %.2f, mount %.2f, start %.2f, ready %.2f, release %.2f",
		t.Park.Seconds(), t.Stop.Seconds(), t.Unmount.Seconds(), t.Copy.Seconds(), t.Commit(paused).Seconds(),
		a.Takeover.Seconds(), a.Mount.Seconds(), a.Run.Seconds(), a.Ready.Seconds(), a.Open.Seconds())
}

// overMigration ends a volume's migration, if there is one, and tells how: with a reason,
// in vain. The caller stores the volume.
func (t *txn) overMigration(v *Volume, reason string) {
	m := v.Migration
	if m == nil {
		return
	}
	v.Migration, v.LastMigration = nil, &EndedMigration{Migration: *m, Reason: reason, At: t.at}
	if v.Moved != nil && v.Moved.Attempt == MigrateAttempt+m.Attempt && reason == "" {
		v.LastMigration.Stopped, v.LastMigration.Times, v.LastMigration.Paused = v.Moved.Began, v.Moved.Times, v.Moved.Paused()
	}
	kind, text := "volume.migrated", fmt.Sprintf("volume %s was migrated from %s to %s", v.Name, t.s.NodeName(m.From), t.s.NodeName(m.To))
	if reason != "" {
		kind, text = "volume.migration-ended", fmt.Sprintf("volume %s was not migrated to %s: %s", v.Name, t.s.NodeName(m.To), reason)
	}
	t.event(Event{Kind: kind, Volume: v.ID, Name: v.Name, Node: m.To, Message: text})
}
