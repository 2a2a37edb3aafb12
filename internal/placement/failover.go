package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Contest is what is known about a volume that has lost its primary.
type Contest struct {
	Volume *state.Volume // in PhaseElecting
	Home   volume.Zone   // of the old primary
	// Answers are what the nodes with a copy said when they were asked to promise; a
	// node that has not said anything yet is missing.
	Answers map[volume.NodeID]Answer
	// Asked is how long ago the last of those that live was asked; 0: not all have been.
	// Grace is how long to wait for those that may still answer; Patience for one that
	// lives and has not said anything, or that has a better copy and may not take the
	// volume just now.
	Asked, Grace, Patience time.Duration
	// Forbearance is how long to wait for the old primary when it lives and may write, and has
	// merely not answered yet: its disk works, or it would have no lease, and only it has
	// what was acknowledged last. Patience when that is longer.
	Forbearance time.Duration
	// Life is the last proof of the old primary's life, by its own wall clock; zero: not
	// known, and then it may have lived until the election. Links is what it said of its
	// replicas then.
	Life  time.Time
	Links []volume.LinkStatus
	// Wish is what an operator has asked for; nil: nothing.
	Wish *Wish
	// Promoted are volumes that the View has without a primary and that are about to get one.
	Promoted map[volume.ID]volume.NodeID
}

// Answer is one node's.
type Answer struct {
	Promise volume.Promise
	Err     string // why there is none; the copy may hold anything
	// Silent, with Err: the node has not said that it cannot; it has not come to it.
	Silent bool
}

// Wish is what an operator wants of an election.
type Wish struct {
	To         volume.NodeID // "": the best
	AcceptLoss bool          // more may be lost than the volume allows
}

// Verdict is how an election stands.
type Verdict struct {
	Promote *state.Promote // nil: nobody yet
	// Why nobody is promoted, in words, and after how long time alone may change that;
	// 0: it takes news, or an operator.
	Why   string
	Again time.Duration
	// Long: it takes longer than elections do, and people may want to know.
	Long bool
}

// Failover chooses the next primary of a volume, or says why nobody can be.
//
// The old primary goes before all others when it is back and may write: it lacks
// nothing. Else the highest complete position wins, so that what a replica has
// acknowledged is never given up for one that is nearer, emptier or wanted; then a node
// that stays before one that is drained, one that has other volumes of its containers, which
// can run nowhere else, the zone that the volume is to be in before others, then the old primary's, a node that it prefers before others, and the better
// score. A copy that cannot be asked is unknown: it is waited for only as long as
// it may still answer, and said to be possibly better. Many volumes make nodes slow to
// answer, so who lives is given time: the quickest is not the one that has most.
//
// After a recovery from one survivor nobody but the old primary is promoted by itself.
//
// Nobody is promoted when more may be lost than the volume's max-loss; the bound is from
// the time up to which the copy is proven complete to the old primary's last proven life.
func Failover(v *View, c Contest) Verdict {
	e := &election{v: v, Contest: c, name: v.name(c.Volume.Election.Was)}
	for _, id := range c.Volume.Placement.Replicas() {
		e.all = append(e.all, e.candidate(id))
	}
	was := e.was()
	switch {
	case was != nil && was.lack == "" && !e.outdone(was) && (c.Wish == nil || c.Wish.To == "" || c.Wish.To == was.id):
		// Only the others can tell that its disk is not the one that it had.
		if v, wait := e.patient(func(c candidate) bool { return c.soon && !c.known }); wait {
			return v
		}
		return e.promote(was, state.Missing{AsOf: c.Life, Life: c.Life, Loss: new(time.Duration), Bytes: new(int64)}, "it lacks nothing")
	case c.Volume.Election.Recovered && (c.Wish == nil || !c.Wish.AcceptLoss):
		return e.recovered()
	case c.Wish != nil && c.Wish.To != "":
		return e.wanted()
	case c.Wish == nil && c.Volume.Spec.Failover != volume.FailoverAuto:
		return e.byHand()
	case c.Wish != nil && c.Volume.Spec.Failover == volume.FailoverNever && !c.Wish.AcceptLoss:
		return e.nobody("it has failover=never; add --accept-loss to go on without %s all the same", e.name)
	}
	return e.best()
}

// election is one look at a Contest.
type election struct {
	v *View
	Contest
	name string // of the old primary
	all  []candidate
}

// candidate is one node with a copy, or that should have one.
type candidate struct {
	id      volume.NodeID
	name    string
	node    *NodeView // nil: no member any more
	known   bool      // its position is what the disk says
	promise volume.Promise
	lack    string // why it cannot be the primary now; "": it can
	soon    bool   // that may change in a moment
	asked   bool   // it lives and has said nothing: its call is under way, or due
	slow    bool   // it lives and may write, and has not said that it cannot answer
	undone  bool   // it may hold what a rollback has undone, and cannot go back
}

func (e *election) candidate(id volume.NodeID) candidate {
	c := candidate{id: id, name: e.v.name(id), node: e.v.Node(id)}
	a, answered := e.Answers[id]
	c.slow = c.node != nil && c.node.Lease && c.node.poolKnown() && (!answered || a.Silent)
	switch {
	case c.node == nil:
		c.lack = "is no member any more"
		return c
	case c.node.Witness:
		c.lack = "keeps no data"
		return c
	case !answered:
		c.lack, c.soon, c.asked = "has not answered", c.node.Alive || c.node.Reported.IsZero(), c.node.Alive
		return c
	case a.Silent:
		c.lack, c.soon = "has not answered yet ("+a.Err+")", c.node.Alive
		return c
	case a.Err != "":
		c.lack, c.soon = "cannot be asked ("+a.Err+")", c.node.Alive
		return c
	}
	c.promise = a.Promise
	line := e.Volume.Line()
	undone := c.promise.Newest.Epoch < line.Epoch && !c.promise.Before
	first := e.Volume.Start.IsZero() && id == e.Volume.Election.Was // nothing was ever snapshotted
	switch {
	case !c.promise.Exists || c.promise.Newest.IsZero() && !first:
		c.lack = "has no whole copy"
	case e.strayed(c.promise.Newest):
		c.lack = "holds another history than " + e.name + " had"
	case undone && (e.Wish == nil || !e.Wish.AcceptLoss):
		// One that has the snapshot stands where the line begins; one that ends before it has
		// nothing that was undone, and is as good as any that lags.
		c.lack = fmt.Sprintf("has no snapshot %s, which the volume was rolled back to, and nothing that came after", line.Snapshot)
	default:
		c.known, c.undone = true, undone
		switch {
		case !c.node.Lease:
			c.lack, c.soon = "has no lease", true
		case c.node.Alive && !c.node.poolKnown():
			c.lack, c.soon = "has a pool in state "+cmp.Or(c.node.Pool.Health, "unknown"), true
		}
	}
	return c
}

// strayed says that a copy is one of an earlier primary that went its own way: it goes
// beyond where the last one began, with what that one never had.
func (e *election) strayed(p volume.Position) bool {
	start := e.Volume.Start
	if start.IsZero() || p.Epoch > start.Epoch {
		return false
	}
	if r := e.Volume.RolledBack; r != nil && !r.Passed && start.Same(e.Volume.Line().Start()) && p.Epoch == start.Epoch && p.Seq > 0 {
		return false // the epoch of a rollback begins with its own first position
	}
	return p.Compare(start) > 0 || p.Compare(start) == 0 && p.GUID != start.GUID
}

func (e *election) was() *candidate {
	i := slices.IndexFunc(e.all, func(c candidate) bool { return c.id == e.Volume.Election.Was })
	if i < 0 {
		return nil
	}
	return &e.all[i]
}

// outdone says that a copy which should have all has less than another one, or than it
// once had itself: its disk is an older one.
func (e *election) outdone(c *candidate) bool {
	return c.promise.Newest.Compare(e.Volume.Start) < 0 || e.better(c) != nil ||
		slices.ContainsFunc(e.Links, func(l volume.LinkStatus) bool { return l.Acked.Compare(c.promise.Newest) > 0 })
}

// better is a known copy that goes further than c's; nil when none does. What was undone is no
// further than what was not.
func (e *election) better(c *candidate) *candidate {
	for i := range e.all {
		if x := &e.all[i]; x.known && (c.undone || !x.undone) && x.promise.Newest.Compare(c.promise.Newest) > 0 {
			return x
		}
	}
	return nil
}

// unfulfilled says why a volume does not go to its zone, or to a node that it prefers to
// c's; "" when it does, or has no copy there.
func (e *election) unfulfilled(c *candidate) string {
	spec, out := e.Volume.Spec, ""
	for _, x := range e.all {
		wish := "is preferred"
		switch {
		case x.node == nil || x.id == c.id || x.id == e.Volume.Election.Was:
			continue
		case c.node.strays(spec) && !x.node.strays(spec):
			wish = fmt.Sprintf("is in zone %s", spec.Zone)
		case x.node.strays(spec) || x.node.lean(spec) <= max(0, c.node.lean(spec)):
			continue
		}
		why := "is in another zone than " + e.name + " was"
		switch {
		case x.lack != "":
			why = x.lack
		case e.Wish != nil && e.Wish.To == c.id:
			why = "another was asked for"
		case x.promise.Newest.Compare(c.promise.Newest) < 0:
			why = "holds less"
		case x.node.Availability != state.Active:
			why = "is being drained"
		case e.company(&x) < e.company(c):
			why = "another volume of its container is on " + c.name
		}
		out += fmt.Sprintf("; %s %s, but %s", x.name, wish, why)
	}
	if slices.Contains(spec.Avoid, c.name) {
		out += fmt.Sprintf("; %s is to be avoided, but no other copy is as good", c.name)
	}
	return out
}

// promising is a copy that cannot be asked just now, though its node lives, and that had
// acknowledged more than c's holds; nil when there is none.
func (e *election) promising(c *candidate) *candidate {
	for i := range e.all {
		if x := &e.all[i]; !x.known && x.soon && x.node.Alive && e.acked(x.id).Compare(c.promise.Newest) > 0 {
			return x
		}
	}
	return nil
}

// acked is what a replica had acknowledged, as the old primary said last.
func (e *election) acked(id volume.NodeID) (p volume.Position) {
	for _, l := range e.Links {
		if l.Replica == id {
			p = l.Acked
		}
	}
	return p
}

// choice is the best of those that can be the primary now; nil when none can.
func (e *election) choice() *candidate {
	var best *candidate
	scores := newChooser(e.v, e.Volume.Spec, 0, keyOf(e.Volume.ID))
	score := func(c *candidate) float64 {
		if i := e.v.index[c.id]; scores.unfit[i] == fit {
			return scores.score[i]
		}
		return 0
	}
	for i := range e.all {
		c := &e.all[i]
		if c.lack != "" {
			continue
		}
		if best == nil || cmp.Or(
			cmp.Compare(yes(best.undone), yes(c.undone)),
			c.promise.Newest.Compare(best.promise.Newest),
			e.further(c, best),
			cmp.Compare(yes(c.node.Availability == state.Active), yes(best.node.Availability == state.Active)),
			cmp.Compare(e.company(c), e.company(best)),
			cmp.Compare(yes(best.node.strays(e.Volume.Spec)), yes(c.node.strays(e.Volume.Spec))),
			cmp.Compare(yes(c.node.Zone == e.Home), yes(best.node.Zone == e.Home)),
			cmp.Compare(c.node.lean(e.Volume.Spec), best.node.lean(e.Volume.Spec)),
			cmp.Compare(score(c), score(best)),
			cmp.Compare(best.id, c.id)) > 0 {
			best = c
		}
	}
	return best
}

// atStart says that a copy tells no more than that it has where a rollback's line begins. It may
// have snapshots of people that came after that, which have no position.
func (e *election) atStart(c *candidate) bool {
	line := e.Volume.Line()
	return !line.IsZero() && c.promise.Newest.Same(line.Start())
}

// further compares two copies where a line begins, by what of it they are complete for.
func (e *election) further(a, b *candidate) int {
	if !e.atStart(a) || !e.atStart(b) {
		return 0
	}
	return a.promise.AsOf.Compare(b.promise.AsOf)
}

// company counts the other volumes of the containers that are to run on this one whose
// primary c's node is, or is about to be.
func (e *election) company(c *candidate) int {
	there := map[volume.ID]bool{}
	for _, con := range e.v.containers[e.Volume.ID] {
		for _, cv := range con.Volumes {
			vol := e.v.volume(cv.ID)
			if !con.Run || vol == nil || vol.ID == e.Volume.ID {
				continue
			}
			at := cmp.Or(e.Promoted[vol.ID], vol.Placement.Primary)
			if vol.Phase == state.PhaseMoving && vol.Pending != nil && vol.Pending.To != "" {
				at = vol.Pending.To
			}
			if at == c.id {
				there[vol.ID] = true
			}
		}
	}
	return len(there)
}

// best promotes the best copy, unless a better one may soon be had or too much would be
// lost.
func (e *election) best() Verdict {
	if v, wait := e.patient(shortly); wait {
		return v
	}
	c := e.choice()
	if c == nil {
		return e.nobody("no copy can be promoted: %s", cmp.Or(e.lacking(anyway), "there is none"))
	}
	x, until := e.better(c), e.Patience
	switch was := e.was(); {
	case was == nil || !was.soon || !was.node.Alive || was.known && e.outdone(was):
	case !was.known && e.Wish != nil && e.Wish.AcceptLoss: // what it may have is what is accepted
	default:
		// It may have more than a snapshot shows. It lives, as after a power cut of all
		// nodes, so a slow start must not cost what only it has.
		x = was
		if was.slow {
			until = max(until, e.Forbearance)
		}
	}
	if x == nil && (e.Wish == nil || !e.Wish.AcceptLoss) {
		x = e.promising(c)
	}
	if x != nil && e.Asked < until {
		has := "has"
		if !x.known {
			has = "may have"
		}
		why := fmt.Sprintf("%s %s more than %s, but %s", x.name, has, c.name, x.lack)
		if e.Asked < e.Patience {
			return e.wait(e.Patience, why)
		}
		v := e.wait(until, fmt.Sprintf("%s; it was the primary, lives and can write, so it is waited for until %s; to go on without it: flockctl failover %s --accept-loss",
			why, e.v.Now.Add(until-e.Asked).UTC().Format(time.RFC3339), e.Volume.Name))
		v.Long = true
		return v
	}
	return e.bounded(c)
}

// wanted promotes the node that an operator has named.
func (e *election) wanted() Verdict {
	i := slices.IndexFunc(e.all, func(c candidate) bool { return c.id == e.Wish.To })
	if i < 0 {
		return e.nobody("%s has no copy of it", e.v.name(e.Wish.To))
	}
	c := &e.all[i]
	if c.lack != "" {
		out := e.nobody("%s cannot be its primary: it %s", c.name, c.lack)
		if c.soon && e.Asked < e.Grace {
			out.Again = e.Grace - e.Asked
		}
		return out
	}
	if e.Wish.AcceptLoss {
		return e.bounded(c)
	}
	if v, wait := e.patient(shortly); wait {
		return v
	}
	switch x := e.better(c); {
	case e.Volume.Spec.Failover == volume.FailoverNever:
		return e.nobody("it has failover=never; add --accept-loss to go on without %s all the same", e.name)
	case x != nil:
		return e.nobody("%s holds more than %s; leave --to out, or add --accept-loss", x.name, c.name)
	}
	return e.bounded(c)
}

// byHand is for a volume that nobody but its old primary gets by itself.
func (e *election) byHand() Verdict {
	why := fmt.Sprintf("it has failover=%s and waits for %s", e.Volume.Spec.Failover, e.name)
	if was := e.was(); was != nil && was.lack != "" {
		why += ", which " + was.lack
	}
	if c := e.choice(); c != nil {
		why += fmt.Sprintf("; the copy on %s %s", c.name, e.lacks(e.missing(c)))
	}
	flag := ""
	if e.Volume.Spec.Failover == volume.FailoverNever {
		flag = " --accept-loss"
	}
	return e.nobody("%s; to go on without it: flockctl failover %s%s", why, e.Volume.Name, flag)
}

// recovered is for a volume whose primary was left behind by a recovery. That one may have
// written until a moment ago, and other copies may go further: no bound can be given.
func (e *election) recovered() Verdict {
	why := fmt.Sprintf("the cluster was recovered, and nobody knows what %s wrote until then", e.name)
	if was := e.was(); was != nil && was.lack != "" {
		why += "; " + e.name + " " + was.lack
	}
	if c := e.choice(); c == nil {
		return e.nobody("%s; no copy can be promoted: %s", why, cmp.Or(e.lacking(anyway), "there is none"))
	}
	return e.nobody("%s; to go on without it: flockctl failover %s --accept-loss", why, e.Volume.Name)
}

// bounded promotes c unless that may lose more than the volume allows.
func (e *election) bounded(c *candidate) Verdict {
	m, limit := e.missing(c), e.Volume.Spec.MaxLoss
	accepted := e.Wish != nil && e.Wish.AcceptLoss
	more := ""
	if u := e.unknown(c); u != "" {
		more = "; " + u
	}
	if limit > 0 && (m.Loss == nil || *m.Loss > limit) && !accepted {
		return e.nobody("the best copy that can be had, on %s, %s, and max-loss=%s%s; bring %s back, or go on without it: flockctl failover %s --accept-loss",
			c.name, e.lacks(m), volume.FormatDuration(limit), more, e.name, e.Volume.Name)
	}
	note := "the copy " + e.lacks(m) + more
	if at := c.promise.Newest.Taken; !at.IsZero() {
		note += "; its last snapshot was taken at " + at.UTC().Format(time.RFC3339)
	}
	if x := e.better(c); x != nil {
		note += fmt.Sprintf("; %s holds more, but %s", x.name, cmp.Or(x.lack, "another was asked for"))
	}
	note += e.ofRollback(c)
	note += e.unfulfilled(c)
	if accepted {
		note += "; an operator has accepted the loss"
	}
	return e.promote(c, m, note)
}

// ofRollback says what a volume that was rolled back has on c's copy, or what of it only the old
// primary has; "" where there is nothing to say.
func (e *election) ofRollback(c *candidate) string {
	r := e.Volume.RolledBack
	switch {
	case r == nil:
		return ""
	case c.undone:
		return fmt.Sprintf("; it has no snapshot %s, which the volume was rolled back to, and may hold what that has undone", r.Snapshot)
	case c.promise.Before:
		return fmt.Sprintf("; it ends before snapshot %s, which the volume was rolled back to", r.Snapshot)
	case r.Passed || r.Node == "" || r.Node != e.Volume.Election.Was || slices.ContainsFunc(r.Kept, func(id volume.NodeID) bool { return e.Volume.Placement.Role(id) != volume.RoleNone }):
		return ""
	}
	return fmt.Sprintf("; the last of what the rollback to %s has undone is on %s only", r.Snapshot, e.name)
}

func (e *election) promote(c *candidate, m state.Missing, note string) Verdict {
	loss := e.loss(c)
	if m.Loss != nil {
		loss = *m.Loss
	}
	return Verdict{Promote: &state.Promote{
		ID: e.Volume.ID, Epoch: e.Volume.Epoch, To: c.id, Start: c.promise.Newest, Loss: loss, Note: note, Missing: &m,
	}}
}

// patient waits for those that may still answer: those that live for as long as their
// calls last, which end by themselves; of the others, for which for a moment.
func (e *election) patient(which func(candidate) bool) (Verdict, bool) {
	if silent := e.lacking(func(c candidate) bool { return c.asked }); silent != "" && e.Asked < e.Patience {
		return e.wait(e.Patience, silent), true
	}
	if soon := e.lacking(which); soon != "" && e.Asked < e.Grace {
		return e.wait(e.Grace, soon), true
	}
	return Verdict{}, false
}

// wait is for what may still change until then.
func (e *election) wait(until time.Duration, why string) Verdict {
	return Verdict{Why: "waiting: " + why, Again: until - e.Asked}
}

func (e *election) nobody(format string, args ...any) Verdict {
	return Verdict{Why: fmt.Sprintf(format, args...)}
}

// missing is what c's copy may lack of what the old primary wrote until it was last heard
// of. Words and numbers are all made from it.
func (e *election) missing(c *candidate) state.Missing {
	m := state.Missing{AsOf: e.complete(c), Life: e.Life}
	if e.Volume.Election.Recovered {
		return m // the old primary may have written until a moment ago, and nobody has heard of it
	}
	loss := e.loss(c)
	m.Loss = &loss
	if loss == 0 {
		m.Bytes = new(int64)
		return m
	}
	// 0 is what a primary says that has not measured since. Copies on the same snapshot
	// lack the same.
	for _, l := range e.Links {
		if l.Acked.GUID == c.promise.Newest.GUID && l.LagBytes > 0 && (m.Bytes == nil || l.LagBytes > *m.Bytes) {
			m.Bytes = &l.LagBytes
		}
	}
	return m
}

// loss is the most that c's copy may lack, if what was heard of the old primary is all.
func (e *election) loss(c *candidate) time.Duration {
	life := cmp.Or(e.Life, e.Volume.Election.Began, e.v.Now)
	return max(0, life.Sub(later(e.complete(c), e.Volume.Created)))
}

// complete is the time up to which c's copy is proven complete; zero: not known.
func (e *election) complete(c *candidate) (asOf time.Time) {
	if e.atStart(c) {
		return c.promise.AsOf // another one there may have more
	}
	// Copies that stand on the same snapshot hold the same; what proves one complete
	// proves all of them. What the primary itself said last counts, where it named that
	// snapshot: a replica repeats what it was told before, and if the primary's clock was
	// set back since, that lies in a future which this life never reached.
	for _, l := range e.Links {
		if !l.Acked.IsZero() && l.Acked.GUID == c.promise.Newest.GUID {
			asOf = later(asOf, l.CompleteAsOf)
		}
	}
	if asOf.IsZero() {
		asOf = c.promise.AsOf
		for _, x := range e.all {
			if x.known && x.promise.Newest.GUID == c.promise.Newest.GUID {
				asOf = later(asOf, x.promise.AsOf)
			}
		}
	}
	return asOf
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// lacks says in words what a copy may lack.
func (e *election) lacks(m state.Missing) string {
	amount := ""
	if m.Bytes != nil {
		amount = fmt.Sprintf(" (about %s)", volume.RoughSize(*m.Bytes))
	}
	switch {
	case m.Loss == nil:
		return fmt.Sprintf("may lack whatever %s wrote before the cluster was recovered, and nobody can say how much", e.name)
	case m.Nothing():
		return fmt.Sprintf("has all that was written until %s was last heard of", e.name)
	case m.Life.IsZero():
		return fmt.Sprintf("may lack the last %s%s", volume.RoughDuration(*m.Loss), amount)
	}
	return fmt.Sprintf("may lack the last %s%s before %s was last heard of", volume.RoughDuration(*m.Loss), amount, e.name)
}

// unknown says which copies that are not known had acknowledged more than c's holds;
// "" when none had.
func (e *election) unknown(c *candidate) string {
	var names []string
	for _, x := range e.all {
		if _, answered := e.Answers[x.id]; answered && e.Answers[x.id].Err == "" {
			continue
		}
		if e.acked(x.id).Compare(c.promise.Newest) > 0 {
			names = append(names, x.name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return strings.Join(names, " and ") + ", which cannot be asked, had acknowledged more"
}

// lacking says why some of the candidates cannot be the primary now; "" of none.
func (e *election) lacking(which func(candidate) bool) string {
	var out []string
	for _, c := range e.all {
		if c.lack != "" && which(c) {
			out = append(out, c.name+" "+c.lack)
		}
	}
	return strings.Join(out, ", ")
}

func anyway(candidate) bool    { return true }
func shortly(c candidate) bool { return c.soon }
