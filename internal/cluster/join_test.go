package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		first := l.node("z1")
		first.init()
		good := l.token(time.Hour, 0)

		other := newLab(t)
		other.net = l.net
		defer other.close()
		foreign := other.node("z1")
		foreign.host = "10.7.7.7"
		foreign.init()

		parsed, err := ParseToken(good)
		if err != nil {
			t.Fatal(err)
		}
		change := func(f func(*Token)) string {
			c := parsed
			f(&c)
			return c.String()
		}
		wrongSecret := func(text string) string {
			c, err := ParseToken(text)
			if err != nil {
				t.Fatal(err)
			}
			c.Secret = strings.Map(rot, c.Secret)
			return c.String()
		}
		oneUse := l.token(time.Hour, 1)
		l.node("z1").join(first, oneUse)
		expired := l.token(time.Minute, 0)
		revoked := l.token(time.Hour, 0)
		rev, err := ParseToken(revoked)
		if err != nil {
			t.Fatal(err)
		}
		l.propose(state.RevokeToken{ID: rev.ID})
		time.Sleep(2 * time.Minute)

		notValid := "not valid in this cluster: it was revoked, or mistyped"
		for _, tt := range []struct {
			name, token string
			code        volume.Code
			want        string
		}{
			{"empty", "", volume.CodeInvalid, "does not start with FLK-"},
			{"cut off", good[:40], volume.CodeInvalid, "five parts"},
			{"later format", "FLK-2-abc", volume.CodeInvalid, "format \"2\""},
			{"wrong secret", wrongSecret(good), volume.CodeDenied, notValid},
			{"wrong id", change(func(t *Token) { t.ID = strings.Map(rot, t.ID) }), volume.CodeDenied, notValid},
			{"revoked", revoked, volume.CodeDenied, notValid},
			{"expired", expired, volume.CodeDenied, "expired at"},
			{"expired, wrong secret", wrongSecret(expired), volume.CodeDenied, notValid},
			{"used up", oneUse, volume.CodeDenied, "good for 1 joins and all are used"},
			{"another cluster's", change(func(t *Token) { t.Root[0]++ }), volume.CodeDenied, "of another cluster than the join token"},
		} {
			n := l.node("z1")
			_, err := Join(t.Context(), n.config(), JoinRequest{Token: tt.token, Peers: []string{first.addr()}, Name: n.name})
			if err == nil || volume.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: Join = %v (code %q); want %q with %q", tt.name, err, volume.CodeOf(err), tt.code, tt.want)
			}
			if _, err := Open(n.config()); !errors.Is(err, ErrNoCluster) {
				t.Errorf("%s: after a refused join Open = %v", tt.name, err)
			}
		}
		// The right token at the wrong cluster's node.
		n := l.node("z1")
		_, err = Join(t.Context(), n.config(), JoinRequest{Token: good, Peers: []string{foreign.addr()}, Name: n.name})
		if volume.CodeOf(err) != volume.CodeDenied {
			t.Errorf("at another cluster: %v", err)
		}
		// A dead address first, then a good one.
		n.run(Join(t.Context(), n.config(), JoinRequest{
			Token: " " + strings.ToUpper(good) + "\n", Peers: []string{"10.0.0.99:4523", first.addr()}, Name: n.name,
		}))
	})
}

// rot makes another letter of the same alphabet, keeping spare bits zero.
func rot(r rune) rune {
	if r == 'a' {
		return 'i'
	}
	return 'a'
}

func TestJoinRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		first := l.node("z1")
		first.init()
		token := l.token(0, 0)
		ask := func(n *labNode, change func(*JoinRequest)) error {
			req := JoinRequest{Token: token, Peers: []string{first.addr()}, Name: n.name, Advertise: n.addr()}
			change(&req)
			_, err := Join(t.Context(), n.config(), req)
			return err
		}
		for _, tt := range []struct {
			name   string
			change func(*JoinRequest)
			code   volume.Code
			want   string
		}{
			{"name taken", func(r *JoinRequest) { r.Name = "n1" }, volume.CodeConflict, `named "n1" is in the cluster already`},
			{"bad name", func(r *JoinRequest) { r.Name = "no spaces" }, volume.CodeInvalid, "node name"},
			{"no name", func(r *JoinRequest) { r.Name = "" }, volume.CodeInvalid, "node name"},
			{"bad zone", func(r *JoinRequest) { r.Zone = "/" }, volume.CodeInvalid, "zone"},
			{"unreachable address", func(r *JoinRequest) { r.Advertise = "0.0.0.0:4523" }, volume.CodeInvalid, "that other nodes can reach"},
			{"no peers", func(r *JoinRequest) { r.Peers = nil }, volume.CodeInvalid, "--peer"},
		} {
			n := l.node("z1")
			err := ask(n, tt.change)
			if volume.CodeOf(err) != tt.code || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("%s: Join = %v; want %q with %q", tt.name, err, tt.code, tt.want)
			}
			// The same machine corrects its mistake.
			if tt.name == "name taken" {
				n.join(first, token)
				if err := ask(n, func(*JoinRequest) {}); volume.CodeOf(err) != volume.CodeConflict || !strings.Contains(err.Error(), "member of cluster") {
					t.Errorf("Join of a member = %v; want a conflict", err)
				}
				n.stop()
				n.run(Join(t.Context(), n.config(), JoinRequest{Token: token, Name: n.name, IfNew: true}))
			}
		}
	})
}

// A joiner reaches a member that is no leader, and is sent on. An advertised address
// without a host gets the one that the joiner is seen from.
func TestJoinThroughFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		token := l.token(0, 0)
		var follower *labNode
		for _, n := range l.nodes {
			if n != l.leader() {
				follower = n
			}
		}
		n := l.node("z1")
		cfg := n.config()
		cfg.Advertise = ""
		n.run(Join(t.Context(), cfg, JoinRequest{Token: token, Peers: []string{follower.addr()}, Name: n.name, Advertise: ":4523"}))
		l.settle(3)
		rec := n.cluster().State().Node(n.cluster().ID())
		if rec == nil || rec.Addr != n.addr() {
			t.Errorf("the new node is on record as %+v; want address %s", rec, n.addr())
		}
	})
}

// Who joins says where it is; a member believes no address that nobody could dial.
func TestJoinAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		first := l.node("z1")
		first.init()
		token, err := ParseToken(l.token(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct{ addr, gossip, want string }{
			{"0.0.0.0:4523", "", "advertised address"},
			{"n9:4523", "0.0.0.0:4524", "advertised gossip address"},
			{"n9:4523", "n9", "advertised gossip address"},
		} {
			body, err := json.Marshal(joinMessage{TokenID: token.ID, Secret: token.Secret, Node: state.Node{
				ID: volume.NewNodeID(), Name: "n9", Zone: "z1", Addr: tt.addr, GossipAddr: tt.gossip}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = first.cluster().handleJoin(t.Context(), "", body)
			if volume.CodeOf(err) != volume.CodeInvalid || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("a node at %s and %s: %v; want a refusal about the %s", tt.addr, tt.gossip, err, tt.want)
			}
		}
	})
}

// The answer of a join is lost: the machine asks again with the same identity, and
// one use of the token is counted.
func TestJoinTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		first := l.node("z1")
		first.init()
		token := l.token(0, 1)
		n := l.node("z1")
		// The first answer does not arrive: the joiner's disk stalls before it can
		// ask, and what was asked for is done by hand.
		who, err := loadPending(n.disk, false)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParseToken(token)
		if err != nil {
			t.Fatal(err)
		}
		j := &joiner{cfg: n.config(), req: JoinRequest{Name: n.name, Zone: "z1", Advertise: n.addr()}, token: parsed, who: who}
		if _, _, err := j.ask(t.Context(), first.addr()); err != nil {
			t.Fatal(err)
		}
		c := n.join(first, token)
		if c.ID() != who.Node {
			t.Errorf("the second try used another identity")
		}
		l.settle(1)
		if got := len(names(c.State())); got != 2 {
			t.Errorf("%d members; want 2", got)
		}
		if uses := c.State().Token(parsed.ID).Uses; uses != 1 {
			t.Errorf("the token counts %d uses", uses)
		}
		if _, err := n.disk.Read(filePending); err == nil {
			t.Error("the pending identity is still on disk")
		}

		// A wiped machine is another node; its old name is taken until it is removed.
		n.kill()
		n.disk = NewMemDisk()
		again := l.token(0, 0)
		_, err = Join(t.Context(), n.config(), JoinRequest{Token: again, Peers: []string{first.addr()}, Name: n.name})
		if volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("Join of a wiped machine under its old name = %v; want a conflict", err)
		}
		c2 := n.run(Join(t.Context(), n.config(), JoinRequest{Token: again, Peers: []string{first.addr()}, Name: n.name + "b"}))
		if c2.ID() == who.Node {
			t.Error("a wiped machine got its old ID")
		}
	})
}

// Join waits for a cluster that is not there yet, if it is told to.
func TestJoinWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		first := l.node("z1")
		first.init()
		token := l.token(0, 0)
		first.stop()
		n := l.node("z1")
		req := JoinRequest{Token: token, Peers: []string{first.addr()}, Name: n.name}
		start := time.Now()
		if _, err := Join(t.Context(), n.config(), req); err == nil || time.Since(start) > 5*time.Second {
			t.Errorf("Join without a member = %v after %s; want an early error", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req.Wait = true
		if _, err := Join(ctx, n.config(), req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Join with Wait = %v; want the end of the context", err)
		}
		time.AfterFunc(30*time.Second, func() { first.start() })
		n.run(Join(t.Context(), n.config(), req))
		l.settle(1)
	})
}

// A directory that holds an old log is not given a new identity.
func TestLeftoverLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		n := l.node("z1")
		n.init()
		n.stop()
		if err := n.disk.Remove(fileNode); err != nil {
			t.Fatal(err)
		}
		if _, err := Init(t.Context(), n.config(), InitRequest{Name: "n1"}); volume.CodeOf(err) != volume.CodeRefused {
			t.Errorf("Init over an old log = %v; want a refusal", err)
		}
	})
}

// Nodes of two clusters do not talk, whatever the address book says.
func TestForeignCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newLab(t), newLab(t)
		b.net = a.net
		defer a.close()
		defer b.close()
		na, nb := a.node("z1"), b.node("z1")
		nb.host = "10.7.7.7"
		ca, cb := na.init(), nb.init()
		a.leader()
		b.leader()
		ca.book.learn(ca.State(), cb.ID(), nb.addr())
		_, err := ca.Dial(t.Context(), cb.ID(), transport.ProtoNode)
		if !errors.Is(err, transport.ErrForeignCluster) {
			t.Errorf("Dial of a foreign node = %v; want ErrForeignCluster", err)
		}
		// And an address that was given to another machine of the same cluster.
		second := a.node("z1")
		second.join(na, a.token(0, 0))
		a.settle(1)
		id := second.cluster().ID()
		var wrong *transport.WrongNodeError
		_, err = ca.dialer.DialNode(t.Context(), id, na.addr(), transport.ProtoNode)
		if !errors.As(err, &wrong) || wrong.Got != ca.ID() {
			t.Errorf("Dial of the wrong address = %v; want a WrongNodeError", err)
		}
		// A wrong hint costs one attempt.
		ca.book.learn(ca.State(), id, na.addr())
		conn, err := ca.Dial(t.Context(), id, transport.ProtoNode)
		if err != nil {
			t.Fatalf("Dial with a wrong hint = %v", err)
		}
		conn.Close()
	})
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.certLife = 5 * time.Minute
		l.form(4)
		plain := l.nodes[0]
		for _, n := range l.nodes {
			if _, err := n.disk.Read(fileSeal); err != nil {
				plain = n
			}
		}
		if plain == l.nodes[0] {
			t.Fatal("every node has the seal, also the one that is no voter")
		}

		// Everybody renews in time, while running.
		before := map[*labNode]time.Time{}
		for _, n := range l.nodes {
			_, before[n] = n.cluster().id.Validity()
		}
		time.Sleep(l.certLife * 85 / 100)
		for _, n := range l.nodes {
			if _, now := n.cluster().id.Validity(); !now.After(before[n]) {
				t.Errorf("%s did not renew its certificate", n.name)
			}
		}

		// A node that was off for longer than its certificate's life.
		plain.stop()
		time.Sleep(2 * l.certLife)
		plain.start()
		l.settle(3)

		// All of them were.
		for _, n := range l.nodes {
			n.stop()
		}
		time.Sleep(24 * time.Hour)
		for _, n := range l.nodes {
			n.start()
		}
		l.settle(3)
	})
}

// A stranger with a key of its own gets no certificate in a member's name.
func TestRenewalRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		n := l.node("z1")
		c := n.init()
		l.token(0, 0)
		key, err := transport.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		csr, err := transport.NewRequest(key)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := transport.DigestRoot(c.id.RootPEM())
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range []volume.NodeID{c.ID(), volume.NewNodeID()} {
			conn, _, err := transport.DialJoin(t.Context(), l.net.Host("x").Dial, n.addr(), digest)
			if err != nil {
				t.Fatal(err)
			}
			var answer renewAnswer
			err = call(t.Context(), conn, "renew", renewMessage{Node: node, CSR: csr}, &answer)
			if volume.CodeOf(err) != volume.CodeDenied {
				t.Errorf("renewing for %s with a strange key = %v; want CodeDenied", node.Short(), err)
			}
		}
	})
}

func TestRenewAt(t *testing.T) {
	from := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	to := from.Add(100 * time.Hour)
	for _, tt := range []struct {
		dice float64
		want time.Duration
	}{{0, 50 * time.Hour}, {0.5, 65 * time.Hour}, {1, 80 * time.Hour}} {
		if got := renewAt(from, to, tt.dice).Sub(from).Round(time.Second); got != tt.want {
			t.Errorf("renewAt(%v) = %s; want %s", tt.dice, got, tt.want)
		}
	}
}

func TestTokenText(t *testing.T) {
	var root transport.RootDigest
	for i := range root {
		root[i] = byte(i * 7)
	}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	rec, text := NewToken(root, now, 0, 3)
	tok, err := ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if tok.Root != root || tok.ID != rec.ID || tok.String() != text {
		t.Errorf("ParseToken(%q) = %+v", text, tok)
	}
	if rec.MaxUses != 3 || !rec.Expires.Equal(now.Add(24*time.Hour)) || strings.Contains(string(rec.Hash), tok.Secret) {
		t.Errorf("record %+v", rec)
	}
	if err := checkSecret(&rec, tok.Secret); err != nil {
		t.Errorf("checkSecret of the right secret = %v", err)
	}
	wrong, unknown := checkSecret(&rec, "x"), checkSecret(nil, tok.Secret)
	if wrong == nil || unknown == nil || wrong.Error() != unknown.Error() {
		t.Errorf("a wrong secret (%v) and an unknown token (%v) must look the same", wrong, unknown)
	}
}

func FuzzParseToken(f *testing.F) {
	_, text := NewToken(transport.RootDigest{1}, time.Time{}, 0, 0)
	f.Add(text)
	f.Add(strings.ToUpper(text) + " ")
	f.Add("FLK-1---")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		again, err := ParseToken(tok.String())
		if err != nil || again != tok {
			t.Errorf("%q parses to %+v, whose text parses to %+v, %v", s, tok, again, err)
		}
		if !strings.EqualFold(strings.TrimSpace(s), tok.String()) {
			t.Errorf("%q parses to another token, %q", s, tok)
		}
	})
}
