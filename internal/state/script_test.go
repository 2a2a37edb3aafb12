package state

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// Scripts in testdata drive Apply with one command a line and show the state.
//
//	init n1              the cluster with its first node
//	token t1 [uses=N] [ttl=D]
//	join n2 t1 [zone=Z]
//	create NAME on=n1 [local=n2,n3] [remote=n4] [size=N] [id=V] [adopt=ASIDE] [clone=VOLUME@SNAPSHOT:GUID] [after=EPOCH] [ports=80:8080/http,..]
//	set NAME [size=N] [replicas=N] [uid=N] [ports=..]   UpdateSpec
//	confirm|purge|forget NAME
//	abort-create NAME REASON
//	replicas NAME [local=..] [remote=..]
//	move NAME to=n2 try=a        commit-move NAME try=a     abort-move NAME try=a REASON
//	migrate NAME to=n2 try=a      end-migration NAME try=a [REASON]
//	rollback NAME to=SNAPSHOT try=a [guid=N]
//	commit-rollback NAME try=a [final=EPOCH] [guid=N] [base=SEQ] [kept=n2]   the epoch and guid of what is undone
//	call-off-rollback NAME try=a
//	remove NAME try=a            commit-remove NAME try=a   abort-remove NAME try=a REASON
//	undelete NAME [as=NEW]
//	differs NAME TEXT    the primary has found copies that are not alike
//	data-key ID [was=ID]
//	container NAME on=n1 vols=a,b id=ENGINEID [key=K] [size=N] [epoch=N] [ports=..] [publish=HOST:PORT,..] [stopped]
//	drop-container NAME on=n1 vols=a,b [changed=N]
//	recover n1                    Recover, which is no command
//	drain n2 [keep=yes]  undrain n2
//	leave n2             dead n2 [fenced=yes] [lose=NAME,NAME]   RemoveNode
//	settings [trash=D] [aside=D] [replace=D] [link:A:B=N] [raw:A:B=N] [was ...]
//	                     "was": what the proposer saw; "raw": in this order, unsorted
//	lead NODE                               TakeLead
//	arm [profile=fast] [promote=D]          disarm REASON
//	grant NODE boot=B [no=N]                no: the next one
//	complete n1=N n2=N ..                   CompleteArming, heard under these numbers
//	lost NODE [no=N] [reign=N] [proven=1] REASON   RevokeLease
//	elect NAME [fenced=1] REASON            BeginElection
//	promote NAME to=n2 [start=EPOCH] [loss=D|?] [bytes=N] NOTE    without loss= as an older version says it
//	later D              the proposers' clock moves on
//	show [NAME ..]       prints volumes, and without a name tokens and events
//	routes               prints routes and where they lead
//	free NAME on=n1 vols=a ports=..   FreeRoutes of a container
//	pause-route PORT[@NAME]  resume-route PORT[@NAME]
//	hold VOLUME guid=N name=NAME by=NODE [note=LENGTH], release VOLUME guid=N
//	bypasses CONTAINER   prints what is published past its routes
//	leases               prints failover, the nodes' leases, and who may write
//
// In the commands of failover, "round=N" gives another round than the right one.
// "changed=N" is the version of the volume that the proposer has seen. "epoch=N" gives
// another epoch than the volume's, "req=ID" a request ID. Node and volume IDs are made
// from their names, so that scripts stay readable. Each line's answer stands below it
// after "=> ".
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(text))
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("got:\n%s\nwant:\n%s", got, text)
			}
		})
	}
}

type script struct {
	t     *testing.T
	s     *State
	index uint64
	at    time.Time
	ids   map[string]volume.ID
}

func runScript(t *testing.T, text string) string {
	sc := &script{t: t, s: New(), at: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), ids: map[string]volume.ID{}}
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "=> ") || strings.HasPrefix(line, "   ") {
			continue // an answer of the last run
		}
		out.WriteString(line + "\n")
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		for i, l := range strings.Split(strings.TrimRight(sc.do(words), "\n"), "\n") {
			if i == 0 {
				out.WriteString("=> " + l + "\n")
			} else {
				out.WriteString("   " + l + "\n")
			}
		}
	}
	return out.String()
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

func nodeID(name string) volume.NodeID {
	return volume.NodeID(strings.Repeat("0", 32-2*len(name)) + fmt.Sprintf("%x", name))
}

func nodeIDs(list string) (out []volume.NodeID) {
	for _, n := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
		out = append(out, nodeID(n))
	}
	return out
}

func (sc *script) do(words []string) string {
	opt, plain := map[string]string{}, []string{}
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			opt[k] = v
		} else {
			plain = append(plain, w)
		}
	}
	arg := func(i int) string {
		if i < len(plain) {
			return plain[i]
		}
		return ""
	}
	id := sc.ids[arg(0)]
	var epoch volume.Epoch
	if v := sc.s.Volume(id); v != nil {
		epoch = v.Epoch
	}
	if n, err := strconv.Atoi(opt["epoch"]); err == nil {
		epoch = volume.Epoch(n)
	}
	changed, _ := strconv.ParseUint(opt["changed"], 10, 64)
	reason := strings.Join(plain[min(1, len(plain)):], " ")
	uses, _ := strconv.Atoi(opt["uses"])
	size, _ := strconv.ParseInt(opt["size"], 10, 64)

	var c Command
	if words[0] == "recover" {
		return sc.recover(nodeID(words[1]))
	}
	switch words[0] {
	case "later":
		d, err := time.ParseDuration(arg(0))
		if err != nil {
			sc.t.Fatal(err)
		}
		sc.at = sc.at.Add(d)
		return sc.at.Format(time.RFC3339)
	case "show":
		return sc.show(plain)
	case "leases":
		return sc.leases()
	case "routes":
		return sc.routes()
	case "free":
		p := sc.container("container", arg(0), opt, false).(PutContainer)
		free, taken := sc.s.FreeRoutes(&p.Container, p.Container.Routes)
		return strings.Join(append([]string{"free: " + volume.FormatRoutes(free)}, taken...), "\n")
	case "bypasses":
		for r := range sc.s.Containers() {
			if r.Name == arg(0) {
				return cmp.Or(strings.Join(sc.s.Bypasses(r), "\n"), "none")
			}
		}
		return "no such container"
	case "pause-route", "resume-route":
		ref, err := volume.ParseRouteRef(arg(0))
		if err != nil {
			sc.t.Fatal(err)
		}
		c = PauseRoute{Listen: ref.Listen, Name: ref.Name, Pause: words[0] == "pause-route"}
	case "hold":
		guid, _ := strconv.ParseUint(opt["guid"], 10, 64)
		c = HoldSnapshot{ID: id, GUID: guid, Name: opt["name"], Node: nodeID(opt["by"]), Note: strings.Repeat("x", atoi(opt["note"]))}
	case "release":
		guid, _ := strconv.ParseUint(opt["guid"], 10, 64)
		c = ReleaseSnapshot{ID: id, GUID: guid}
	case "lead":
		c = TakeLead{Leader: nodeID(arg(0))}
	case "arm", "disarm", "complete", "grant", "lost":
		c = sc.failover(words[0], plain, opt)
	case "elect":
		c = BeginElection{ID: id, Epoch: epoch, Reason: reason, Fenced: opt["fenced"] != ""}
	case "promote":
		start := volume.Position{Epoch: epoch - 1, Seq: 1, GUID: 7}
		if n, err := strconv.Atoi(opt["start"]); err == nil {
			start.Epoch = volume.Epoch(n)
		}
		p := Promote{ID: id, Epoch: epoch, To: nodeID(opt["to"]), Start: start, Note: reason}
		if opt["loss"] != "" {
			p.Missing = &Missing{}
			if d, err := time.ParseDuration(opt["loss"]); err == nil {
				p.Missing.Loss = &d
			}
			if n, err := strconv.ParseInt(opt["bytes"], 10, 64); err == nil {
				p.Missing.Bytes = &n
			}
		}
		c = p
	case "init":
		c = InitCluster{Cluster: Cluster{ID: "c1"}, Node: Node{ID: nodeID(arg(0)), Name: arg(0), Zone: "default"}}
	case "token":
		ttl, err := time.ParseDuration(opt["ttl"])
		if err != nil {
			ttl = time.Hour
		}
		c = CreateToken{Token{ID: arg(0), Expires: sc.at.Add(ttl), MaxUses: uses}}
	case "revoke":
		c = RevokeToken{ID: arg(0)}
	case "join":
		zone := volume.Zone("default")
		if z := opt["zone"]; z != "" {
			zone = volume.Zone(z)
		}
		c = AddNode{Node: Node{ID: nodeID(arg(0)), Name: arg(0), Zone: zone, KeyHash: []byte(opt["key"]), Witness: opt["witness"] != ""}, Token: arg(1)}
	case "create":
		v := volume.ID(fmt.Sprintf("%016x", len(sc.ids)+1))
		if old, ok := sc.ids[arg(0)]; ok && opt["again"] != "" {
			v = old
		}
		after, _ := strconv.ParseUint(opt["after"], 10, 64)
		var of *CloneOf // clone=VOLUME@SNAPSHOT:GUID; @now:GUID is one that was taken for it
		if from, ok := opt["clone"]; ok {
			name, snapshot, _ := strings.Cut(from, "@")
			snapshot, guid, _ := strings.Cut(snapshot, ":")
			n, _ := strconv.ParseUint(guid, 10, 64)
			of = &CloneOf{Volume: sc.ids[name], Name: name, Snapshot: snapshot, GUID: n, Now: snapshot == "now"}
		}
		c = CreateVolume{Clone: of, ID: v, Name: arg(0), Spec: volume.Spec{Size: size, Ports: sc.ports(opt)}, Adopt: opt["adopt"], After: volume.Epoch(after),
			Placement: volume.Placement{Primary: nodeID(opt["on"]), Local: nodeIDs(opt["local"]), Remote: nodeIDs(opt["remote"])}}
	case "set":
		var spec volume.Spec
		if v := sc.s.Volume(id); v != nil {
			spec = v.Spec
		}
		for key, field := range map[string]*int{"replicas": &spec.Replicas, "remote": &spec.Remote, "uid": &spec.UID} {
			if n, err := strconv.Atoi(opt[key]); err == nil {
				*field = n
			}
		}
		if opt["size"] != "" {
			spec.Size = size
		}
		if opt["ports"] != "" {
			spec.Ports = sc.ports(opt)
		}
		c = UpdateSpec{ID: id, Spec: spec, Changed: changed}
	case "confirm":
		c = ConfirmCreate{ID: id, Epoch: epoch}
	case "abort-create":
		c = AbortCreate{ID: id, Epoch: epoch, Reason: reason}
	case "replicas":
		c = SetReplicas{ID: id, Epoch: epoch, Local: nodeIDs(opt["local"]), Remote: nodeIDs(opt["remote"]), Changed: changed}
	case "move":
		begin := BeginHandoff{ID: id, Epoch: epoch, To: nodeID(opt["to"]), Attempt: opt["try"], Follow: opt["follow"] != "", Back: opt["back"]}
		if opt["services"] != "" {
			begin.Services = strings.Split(opt["services"], ",")
		}
		c = begin
	case "commit-move":
		c = CommitHandoff{ID: id, Epoch: epoch, Attempt: opt["try"], Final: volume.Position{Epoch: epoch, Seq: 1, GUID: 7},
			Times: MoveTimes{Held: span(opt["held"])}}
	case "open-routes":
		c = OpenRoutes{ID: id, Epoch: epoch, Ago: span(opt["ago"]), Arrival: ArrivalTimes{
			Takeover: span(opt["takeover"]), Mount: span(opt["mount"]), Run: span(opt["run"]), Ready: span(opt["ready"]), Open: span(opt["open"])}}
	case "abort-move":
		c = AbortHandoff{ID: id, Epoch: epoch, Attempt: opt["try"], Reason: reason}
	case "migrate":
		c = StartMigration{ID: id, To: nodeID(opt["to"]), Attempt: opt["try"]}
	case "end-migration":
		c = EndMigration{ID: id, Attempt: opt["try"], Reason: reason}
	case "rollback":
		guid, _ := strconv.ParseUint(cmp.Or(opt["guid"], "5"), 10, 64)
		c = BeginRollback{ID: id, Epoch: epoch, Attempt: opt["try"], To: RollbackTo{Snapshot: opt["to"], GUID: guid}}
	case "commit-rollback":
		final := volume.Position{Epoch: epoch, Seq: 9, GUID: 9, Taken: sc.at}
		if n, err := strconv.ParseUint(opt["guid"], 10, 64); err == nil {
			final.GUID = n
		}
		if n, err := strconv.Atoi(opt["final"]); err == nil {
			final.Epoch = volume.Epoch(n)
		}
		roll := CommitRollback{ID: id, Epoch: epoch, Attempt: opt["try"], Final: final}
		if n, err := strconv.ParseUint(opt["base"], 10, 64); err == nil {
			roll.Base = volume.Position{Epoch: epoch, Seq: n, GUID: n, Taken: sc.at}
		}
		if opt["kept"] != "" {
			roll.Kept = []volume.NodeID{nodeID(opt["kept"])}
		}
		c = roll
	case "call-off-rollback":
		c = CallOffRollback{ID: id, Epoch: epoch, Attempt: opt["try"]}
	case "remove":
		c = BeginDelete{ID: id, Epoch: epoch, Attempt: opt["try"]}
	case "commit-remove":
		c = CommitDelete{ID: id, Epoch: epoch, Attempt: opt["try"]}
	case "abort-remove":
		c = AbortDelete{ID: id, Epoch: epoch, Attempt: opt["try"], Reason: reason}
	case "undelete":
		name := arg(0)
		if opt["as"] != "" {
			name = opt["as"]
		}
		c = Undelete{ID: id, Name: name}
	case "differs":
		c = Tell{Volume: id, Kind: VolumeDiffers, Message: reason}
	case "data-key":
		c = SetDataKey{ID: arg(0), Was: opt["was"]}
	case "container", "drop-container":
		c = sc.container(words[0], arg(0), opt, slices.Contains(plain, "stopped"))
	case "settings":
		// settings KEY=DURATION.. [was KEY=DURATION..]: with "was" the precondition.
		c = settingsLine(sc.t, words[1:])
	case "drain", "undrain":
		to := Active
		if words[0] == "drain" {
			to = Drain
		}
		c = UpdateNode{ID: nodeID(arg(0)), Availability: &to, KeepReplicas: opt["keep"] != ""}
	case "leave", "dead":
		remove := RemoveNode{ID: nodeID(arg(0)), Dead: words[0] == "dead", Fenced: opt["fenced"] != ""}
		for _, name := range strings.FieldsFunc(opt["lose"], func(r rune) bool { return r == ',' }) {
			remove.Lose = append(remove.Lose, sc.ids[name])
		}
		c = remove
	case "purge":
		c = PurgeVolume{ID: id, Changed: changed}
	case "forget":
		c = ForgetVolume{ID: id}
	default:
		sc.t.Fatalf("no such line: %q", words)
	}
	res := sc.apply(Envelope{Request: opt["req"], At: sc.at, Command: c})
	if v := sc.s.Volume(res.Volume); v != nil {
		sc.ids[v.Name] = v.ID
	}
	if res.Err != nil {
		return fmt.Sprintf("%s: %s", res.Err.Code, res.Err)
	}
	return "ok"
}

// recover goes on from one node.
func (sc *script) recover(survivor volume.NodeID) string {
	sc.t.Helper()
	before := dump(sc.t, sc.s)
	next, err := Recover(sc.s, Recovery{Survivor: survivor, At: sc.at})
	if !bytes.Equal(before, dump(sc.t, sc.s)) {
		sc.t.Fatal("Recover changed the state it was given")
	}
	if err != nil {
		return fmt.Sprintf("%s: %s", volume.CodeOf(err), err)
	}
	if err := next.Holds(); err != nil {
		sc.t.Fatalf("after the recovery: %v", err)
	}
	for v := range next.Volumes() {
		if was := sc.s.Volume(v.ID); v.Epoch <= was.Epoch || v.Epoch>>32 != volume.Epoch(next.Cluster().Generation) {
			sc.t.Errorf("volume %s: epoch %s after %s", v.Name, v.Epoch, was.Epoch)
		}
	}
	sc.s = next
	return "ok"
}

// failover makes the commands that arm and disarm it, grant leases and revoke them.
func (sc *script) failover(what string, plain []string, opt map[string]string) Command {
	number := func(key string, def uint64) uint64 {
		if n, err := strconv.ParseUint(opt[key], 10, 64); err == nil {
			return n
		}
		return def
	}
	round := number("round", sc.s.Failover().Round)
	var node volume.NodeID
	var held Lease
	if what == "grant" || what == "lost" {
		node, plain = nodeID(plain[0]), plain[1:]
		if n := sc.s.Node(node); n != nil {
			held = n.Lease
		}
	}
	switch what {
	case "arm":
		timers, ok := lease.Profile(opt["profile"])
		if !ok {
			sc.t.Fatalf("no profile %q", opt["profile"])
		}
		if d, err := time.ParseDuration(opt["promote"]); err == nil {
			timers.Promote = d
		}
		return ArmFailover{Round: number("round", sc.s.Failover().Round+1), Timers: timers, Profile: cmp.Or(opt["profile"], "default")}
	case "disarm":
		return DisarmFailover{Round: round, Reason: strings.Join(plain, " ")}
	case "complete":
		heard := map[volume.NodeID]uint64{}
		for name, no := range opt {
			if n, err := strconv.ParseUint(no, 10, 64); err == nil && name != "round" {
				heard[nodeID(name)] = n
			}
		}
		return CompleteArming{Round: round, Heard: heard}
	case "grant":
		return GrantLease{Node: node, No: number("no", held.No+1), Boot: opt["boot"], Round: round, Safety: volume.SafetySysrq}
	}
	return RevokeLease{Node: node, No: number("no", held.No), Reason: strings.Join(plain, " "),
		Proven: opt["proven"] != "", Reign: number("reign", sc.s.Reign())}
}

// leases shows who may write by the state alone.
func (sc *script) leases() string {
	f := sc.s.Failover()
	out := fmt.Sprintf("%s round=%d profile=%s", f.Mode, f.Round, f.Profile)
	if f.Reason != "" {
		out += fmt.Sprintf(" reason=%q", f.Reason)
	}
	heard := map[volume.NodeID]uint64{}
	for n := range sc.s.Nodes() {
		heard[n.ID] = n.Lease.No
		out += fmt.Sprintf("\n%s lease=%d round=%d boot=%s", n.Name, n.Lease.No, n.Lease.Round, n.Lease.Boot)
		if n.Lease.Revoked {
			out += " revoked"
		}
		switch {
		case !sc.s.NeedsLease(n.ID):
			out += " free"
		case sc.s.HasLease(n.ID):
			out += " valid"
		}
	}
	for _, id := range sc.s.NotHeard(heard) {
		out += "\nnot agreed: " + sc.s.NodeName(id)
	}
	return out
}

// container records a container or forgets it. Without "changed" the proposer has seen
// the record of now.
func (sc *script) container(what, name string, opt map[string]string, stopped bool) Command {
	c := Container{Name: name, Node: nodeID(opt["on"]), ID: opt["id"], Run: !stopped, Key: opt["key"], Hash: opt["id"], Routes: sc.ports(opt)}
	for _, p := range strings.FieldsFunc(opt["publish"], func(r rune) bool { return r == ',' }) {
		var pub Published
		if _, err := fmt.Sscanf(p, "%d:%d", &pub.Host, &pub.Port); err != nil {
			sc.t.Fatalf("publish %q: %v", p, err)
		}
		c.Published = append(c.Published, pub)
	}
	size, _ := strconv.Atoi(opt["size"])
	c.Sealed = make([]byte, size)
	for _, v := range strings.FieldsFunc(opt["vols"], func(r rune) bool { return r == ',' }) {
		cv := ContainerVolume{ID: sc.ids[v]}
		if v := sc.s.Volume(cv.ID); v != nil {
			cv.Epoch = v.Epoch
		}
		if n, err := strconv.Atoi(opt["epoch"]); err == nil {
			cv.Epoch = volume.Epoch(n)
		}
		c.Volumes = append(c.Volumes, cv)
	}
	if what == "container" {
		return PutContainer{Container: c}
	}
	d := DropContainer{Record: c.RecordKey(), Node: c.Node}
	if r := sc.s.Container(d.Record); r != nil {
		d.Changed = r.Changed
	}
	if n, err := strconv.ParseUint(opt["changed"], 10, 64); err == nil {
		d.Changed = n
	}
	return d
}

// ports reads ports=80:8080/http,...; "raw:80:8080/http,..." is not checked and has no order.
func (sc *script) ports(opt map[string]string) []volume.Route {
	sc.t.Helper()
	if raw, ok := strings.CutPrefix(opt["ports"], "raw:"); ok {
		var out []volume.Route
		for _, item := range strings.Split(raw, ",") {
			var r volume.Route
			plain, host, _ := strings.Cut(item, "@")
			if _, err := fmt.Sscanf(plain, "%d:%d/%s", &r.Listen, &r.Port, &r.Mode); err != nil {
				sc.t.Fatalf("route %q: %v", item, err)
			}
			r.Host = strings.ReplaceAll(host, "@", ",")
			out = append(out, r)
		}
		return out
	}
	routes, err := volume.ParseRoutes(opt["ports"])
	if err != nil {
		sc.t.Fatal(err)
	}
	return routes
}

func (sc *script) routes() string {
	var out []string
	for _, r := range sc.s.NodeRoutes() {
		line := fmt.Sprintf("%s of %s", r.Route.Route, r.Volume.Name)
		if r.Container != nil {
			line += " to " + r.Container.Name
		}
		line += " on " + cmp.Or(sc.s.NodeName(r.Owner), "no node") + " epoch=" + strconv.FormatUint(uint64(r.Epoch), 10)
		if r.Moving {
			line += " moving"
		}
		if r.Paused {
			line += " paused"
		}
		out = append(out, line)
	}
	return cmp.Or(strings.Join(out, "\n"), "none")
}

// settingsLine reads trash=1h link:a:b=65536 and the same after the word "was".
func settingsLine(t *testing.T, words []string) Command {
	read := func(words []string) (s Settings) {
		for _, w := range words {
			key, value, _ := strings.Cut(w, "=")
			if pair, ok := strings.CutPrefix(key, "link:"); ok {
				a, b, _ := strings.Cut(pair, ":")
				n, _ := strconv.ParseInt(value, 10, 64)
				s = s.WithLimit(volume.Zone(a), volume.Zone(b), n)
				continue
			}
			if pair, ok := strings.CutPrefix(key, "raw:"); ok {
				a, b, _ := strings.Cut(pair, ":")
				n, _ := strconv.ParseInt(value, 10, 64)
				s.Bandwidth = append(s.Bandwidth, Bandwidth{A: volume.Zone(a), B: volume.Zone(b), Bytes: n})
				continue
			}
			if key == "failover" {
				s.Failover = FailoverMode(value)
				continue
			}
			if key == "rebalance" {
				s.Rebalance = value
				continue
			}
			if field := map[string]*int{"hold-service": &s.HoldService, "hold-node": &s.HoldNode}[key]; field != nil {
				*field, _ = strconv.Atoi(value)
				continue
			}
			field := map[string]*time.Duration{
				"trash": &s.TrashRetention, "aside": &s.AsideRetention, "replace": &s.ReplicaReplaceAfter, "hold": &s.Hold,
			}[key]
			d, err := time.ParseDuration(value)
			if err != nil || field == nil {
				t.Fatalf("settings %q: %v", w, err)
			}
			*field = d
		}
		return s
	}
	i := slices.Index(words, "was")
	if i < 0 {
		return SetSettings{Settings: read(words)}
	}
	was := read(words[i+1:])
	return SetSettings{Settings: read(words[:i]), Was: &was}
}

// apply goes the way of the real log: encoded and decoded, with the old state left
// untouched, and the whole state surviving a snapshot.
func (sc *script) apply(e Envelope) Result {
	sc.t.Helper()
	b, err := Encode(e)
	if err != nil {
		sc.t.Fatal(err)
	}
	back, err := Decode(b)
	if err != nil {
		sc.t.Fatal(err)
	}
	before := dump(sc.t, sc.s)
	old := sc.s
	sc.index++
	next, res := Apply(old, sc.index, back)
	if after := dump(sc.t, old); !bytes.Equal(before, after) {
		sc.t.Fatalf("%s changed the state it was applied to", e.Command.kind())
	}
	if err := next.Holds(); err != nil {
		sc.t.Fatalf("after %s: %v", e.Command.kind(), err)
	}
	restored, err := Unmarshal(bytes.NewReader(dump(sc.t, next)))
	if err != nil {
		sc.t.Fatal(err)
	}
	if got, want := dump(sc.t, restored), dump(sc.t, next); !bytes.Equal(got, want) {
		sc.t.Fatalf("a snapshot gives another state:\n%s\n%s", got, want)
	}
	sc.s = restored
	return res
}

func dump(t *testing.T, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Marshal(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (sc *script) show(only []string) string {
	var b strings.Builder
	names := func(ids []volume.NodeID) string {
		var out []string
		for _, id := range ids {
			out = append(out, sc.s.NodeName(id))
		}
		return strings.Join(out, ",")
	}
	for v := range sc.s.Volumes() {
		if len(only) > 0 && !slices.Contains(only, v.Name) {
			continue
		}
		fmt.Fprintf(&b, "%s %s epoch=%d on=%s local=%s remote=%s", v.Name, v.Phase, uint64(v.Epoch),
			sc.s.NodeName(v.Placement.Primary), names(v.Placement.Local), names(v.Placement.Remote))
		if v.Spec.Replicas != 0 {
			fmt.Fprintf(&b, " replicas=%d", v.Spec.Replicas)
		}
		if v.Election != nil {
			fmt.Fprintf(&b, " was=%s because=%q", sc.s.NodeName(v.Election.Was), v.Election.Reason)
		}
		if !v.Start.IsZero() {
			fmt.Fprintf(&b, " start=%d", uint64(v.Start.Epoch))
		}
		if f := v.LastFailover; f != nil {
			fmt.Fprintf(&b, " failed-over=%s>%s at=%s point=%d", sc.s.NodeName(f.From), sc.s.NodeName(f.To), f.At.Format(time.TimeOnly), uint64(f.Start.Epoch))
			if f.Loss != nil {
				fmt.Fprintf(&b, " loss=%s", f.Loss)
			}
			if f.Bytes != nil {
				fmt.Fprintf(&b, " bytes=%d", *f.Bytes)
			}
		}
		for _, h := range v.Held {
			fmt.Fprintf(&b, " held=%s/%d/%d/%s", h.Name, h.GUID, len(h.Note), sc.s.NodeName(h.Node))
		}
		if v.Adopt != "" {
			fmt.Fprintf(&b, " adopt=%s", v.Adopt)
		}
		if c := v.Clone; c != nil {
			fmt.Fprintf(&b, " clone=%s@%s:%d", c.Name, c.Snapshot, c.GUID)
		}
		if v.Pending != nil {
			fmt.Fprintf(&b, " try=%s to=%s", v.Pending.Attempt, sc.s.NodeName(v.Pending.To))
			if back := v.Pending.Rollback; back != nil {
				fmt.Fprintf(&b, " back-to=%s:%d", back.Snapshot, back.GUID)
			}
		}
		if l := v.Line(); !l.IsZero() {
			fmt.Fprintf(&b, " line=%s:%d@%d", l.Snapshot, l.GUID, uint64(l.Epoch))
			if v.Start == l.Start() {
				b.WriteString(" at-its-start")
			}
			if v.RolledBack.Passed {
				b.WriteString(" passed")
			}
			if base := l.Base; !base.IsZero() {
				fmt.Fprintf(&b, " base=%d-%d", base.Epoch, base.Seq)
				if !base.Taken.IsZero() {
					b.WriteString(" with a time")
				}
			}
			for _, id := range v.RolledBack.Kept {
				fmt.Fprintf(&b, " kept-by=%s not-only=%s", sc.s.NodeName(id), sc.s.NodeName(v.RolledBack.Node))
			}
		}
		if v.Migration != nil {
			fmt.Fprintf(&b, " migrating=%s by=%s", sc.s.NodeName(v.Migration.To), v.Migration.Attempt)
		}
		if v.Moved != nil && len(v.Moved.Services) > 0 {
			fmt.Fprintf(&b, " served=%s", strings.Join(v.Moved.Services, ","))
		}
		if v.LastRefusal != nil {
			fmt.Fprintf(&b, " refused=%q", v.LastRefusal.Reason)
			if v.LastRefusal.Follow {
				fmt.Fprintf(&b, " of=%s to=%s", v.LastRefusal.Attempt, sc.s.NodeName(v.LastRefusal.To))
			}
		}
		b.WriteString("\n")
	}
	if len(only) > 0 {
		return b.String()
	}
	if c := sc.s.Cluster(); c != nil && !c.Settings.Equal(Settings{}) {
		fmt.Fprintf(&b, "settings trash=%s bandwidth=%v\n", c.Settings.TrashRetention, c.Settings.Bandwidth)
	}
	for c := range sc.s.Containers() {
		fmt.Fprintf(&b, "container %s on=%s id=%s run=%t", c.Name, sc.s.NodeName(c.Node), c.ID, c.Run)
		for _, v := range c.Volumes {
			fmt.Fprintf(&b, " %s@%d", sc.s.Volume(v.ID).Name, uint64(v.Epoch))
		}
		for _, n := range slices.Sorted(maps.Keys(c.Left)) {
			fmt.Fprintf(&b, " left=%s:%s", sc.s.NodeName(n), c.Left[n])
		}
		b.WriteString("\n")
	}
	for tok := range sc.s.Tokens() {
		fmt.Fprintf(&b, "token %s uses=%d\n", tok.ID, tok.Uses)
	}
	for e := range sc.s.Events(0) {
		fmt.Fprintf(&b, "event %s: %s\n", e.Kind, e.Message)
	}
	return b.String()
}

// span of a script; "" is none.
func span(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if text != "" && err != nil {
		panic(err)
	}
	return d
}
