package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Paper is something that a machine has to show, as text. Ask may fail and still give a part.
type Paper struct {
	Name string
	// Log: where there is too much of it, its end is what matters.
	Log bool
	Ask func(ctx context.Context) (string, error)
}

// Bounds of what a node gives, in bytes.
const (
	maxPaper  = 2 << 20
	maxPapers = 24 << 20
)

// diagnosticsOf has one node give what it knows.
func (d *Daemon) diagnosticsOf(ctx context.Context, q api.DiagnosticsQuery) (api.Diagnostics, error) {
	m, err := d.member()
	if q.Node == "" {
		return d.diagnostics(ctx, m, q), nil
	}
	if err != nil {
		return api.Diagnostics{}, err
	}
	id, err := m.passOn(ctx, q.Node)
	switch {
	case err != nil:
		return api.Diagnostics{}, err
	case id == m.self:
		return d.diagnostics(ctx, m, q), nil
	}
	q.Node = string(id)
	return m.client(id).Diagnostics(ctx, q)
}

// diagnostics of this machine, m nil when it is in no cluster.
func (d *Daemon) diagnostics(ctx context.Context, m *member, q api.DiagnosticsQuery) api.Diagnostics {
	out := api.Diagnostics{At: d.parts.now()}
	if m != nil {
		out.Node = m.view().ref(m.self)
	}
	papers := d.papers(m)
	pool := ""
	if m != nil {
		pool = m.layout.Pool
	}
	if d.parts.Papers != nil {
		papers = append(papers, d.parts.Papers(pool)...)
	}
	if d.parts.Logs != nil {
		papers = append(papers, d.parts.Logs(cmp.Or(q.Since, api.DefaultLogs))...)
	}
	out.Files = d.read(ctx, papers, secretsOf(m))
	return out
}

// read asks for each paper in turn. One that does not come in time is left behind.
func (d *Daemon) read(ctx context.Context, papers []Paper, secrets []string) (out []api.DiagnosticFile) {
	left := maxPapers
	for _, p := range papers {
		f := api.DiagnosticFile{Name: p.Name}
		text, err := d.asking.paper(ctx, p)
		if err != nil {
			f.Error = withoutSecrets(err.Error(), secrets)
		}
		text = withoutSecrets(strings.ToValidUTF8(text, "?"), secrets)
		if most := min(maxPaper, left); len(text) > most {
			f.Cut = int64(len(text) - most)
			if p.Log {
				text = strings.ToValidUTF8(text[len(text)-most:], "")
			} else {
				text = strings.ToValidUTF8(text[:most], "")
			}
		}
		f.Text = text
		left -= len(text)
		out = append(out, f)
	}
	return out
}

// paper asks for one and waits no longer than for a part of the facts.
func (a *asking) paper(ctx context.Context, p Paper) (string, error) {
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), examineTimeout+time.Second)
	defer cancel()
	got, err := a.begin("paper "+p.Name, func(ctx context.Context) (any, error) { return p.Ask(ctx) }).get(ctx, late)
	text, _ := got.(string) // nil: no answer
	return text, err
}

// asJSON is a paper of a value.
func asJSON[T any](name string, ask func(ctx context.Context) (T, error)) Paper {
	return Paper{Name: name, Ask: func(ctx context.Context) (string, error) {
		v, err := ask(ctx)
		if err != nil {
			return "", err
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", " ")
		err = e.Encode(v)
		return b.String(), err
	}}
}

// papers of flockd itself. Each is made of what is for people anyway, or chosen field by field:
// what is new in the state is not given away because nobody thought of it.
func (d *Daemon) papers(m *member) []Paper {
	b := backend{d}
	all := []Paper{
		asJSON("version.json", b.Version),
		asJSON("status.json", b.Status),
		asJSON("facts.json", func(ctx context.Context) (any, error) { return d.facts(ctx, m), nil }),
		{Name: "metrics.txt", Ask: func(ctx context.Context) (string, error) {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
			if err != nil {
				return "", err
			}
			w := &answerText{head: http.Header{}}
			d.parts.Metrics.Handler(d).ServeHTTP(w, r)
			return w.String(), nil
		}},
	}
	if m == nil {
		return all
	}
	all = append(all,
		asJSON("state.json", func(context.Context) (any, error) { return plainState(m.cluster.State()), nil }),
		asJSON("settings.json", m.Settings),
		asJSON("nodes.json", m.Nodes),
		asJSON("volumes.json", func(ctx context.Context) (any, error) { return m.Volumes(ctx, api.VolumesQuery{}) }),
		asJSON("trash.json", func(ctx context.Context) (any, error) { return m.Volumes(ctx, api.VolumesQuery{Trash: true}) }),
		asJSON("asides.json", m.Asides),
		asJSON("containers.json", m.Containers),
		asJSON("routes.json", m.NodeRoutes),
		asJSON("events.json", func(ctx context.Context) (any, error) { return m.Events(ctx, api.EventsQuery{}) }),
	)
	if m.agent != nil {
		all = append(all, asJSON("report.json", func(context.Context) (any, error) { return m.agent.Report(), nil }))
	}
	return all
}

// answerText is an http.ResponseWriter that keeps the text.
type answerText struct {
	bytes.Buffer
	head http.Header
}

func (a *answerText) Header() http.Header { return a.head }
func (a *answerText) WriteHeader(int)     {}

// plain is what is shown of a state.
type plain struct {
	Index      uint64           `json:"index"`
	Cluster    plainCluster     `json:"cluster"`
	Nodes      []plainNode      `json:"nodes"`
	Volumes    []*state.Volume  `json:"volumes"`
	Containers []plainContainer `json:"containers"`
	Tokens     []api.Token      `json:"tokens"`
}

type plainCluster struct {
	ID         string         `json:"id"`
	Generation uint32         `json:"generation"`
	Created    time.Time      `json:"created"`
	Settings   state.Settings `json:"settings"`
	Failover   state.Failover `json:"failover"`
	Reign      uint64         `json:"reign"`
}

type plainNode struct {
	ID           volume.NodeID     `json:"id"`
	Name         string            `json:"name"`
	Zone         volume.Zone       `json:"zone"`
	Addr         string            `json:"addr"`
	GossipAddr   string            `json:"gossip_addr"`
	Witness      bool              `json:"witness"`
	Availability string            `json:"availability"`
	Labels       map[string]string `json:"labels,omitempty"`
	Joined       time.Time         `json:"joined"`
	Removed      bool              `json:"removed"`
	Lost         bool              `json:"lost"`
	Lease        state.Lease       `json:"lease"`
}

type plainContainer struct {
	Name      string                   `json:"name"`
	Volumes   []state.ContainerVolume  `json:"volumes"`
	Node      volume.NodeID            `json:"node"`
	ID        string                   `json:"id"`
	Run       bool                     `json:"run"`
	Image     string                   `json:"image"`
	Obstacles []string                 `json:"obstacles,omitempty"`
	Blocked   bool                     `json:"blocked"`
	Routes    []volume.Route           `json:"routes,omitempty"`
	Left      map[volume.NodeID]string `json:"left,omitempty"`
	Changed   uint64                   `json:"changed"`
}

func plainState(s *state.State) plain {
	out := plain{Index: s.Index, Nodes: []plainNode{}, Volumes: slices.Collect(s.Volumes()), Containers: []plainContainer{}, Tokens: []api.Token{}}
	if c := s.Cluster(); c != nil {
		out.Cluster = plainCluster{c.ID, c.Generation, c.Created, c.Settings, c.Failover, c.Reign}
	}
	for n := range s.AllNodes() {
		out.Nodes = append(out.Nodes, plainNode{n.ID, n.Name, n.Zone, n.Addr, n.GossipAddr, n.Witness, string(n.Availability), n.Labels, n.Joined, n.Removed, n.Lost, n.Lease})
	}
	for c := range s.Containers() {
		out.Containers = append(out.Containers, plainContainer{c.Name, c.Volumes, c.Node, c.ID, c.Run, c.Image.Ref, c.Obstacles, c.Blocked, c.Routes, c.Left, c.Changed})
	}
	for t := range s.Tokens() {
		out.Tokens = append(out.Tokens, tokenOf(t))
	}
	return out
}

// removed stands in the place of a secret.
const removed = "[removed]"

// privateKey is one in PEM, also one that is cut off.
var privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`)

// joinToken is the text of one, see internal/cluster.
var joinToken = regexp.MustCompile(`(?i)\bFLK-[0-9]+-[a-z2-7]+-[a-z2-7]+-[a-z2-7]+`)

// secretWords are in the names of values that are secrets, as in PASSWORD=x, "api_token": "x" and
// --secret x.
var secretWords = []string{"password", "passwd", "pgpass", "secret", "token", "apikey", "api_key", "access_key", "private_key", "credential"}

// secretValues are the forms that such a value may have, each with what its place is taken by.
var secretValues = func() (out []secretValue) {
	name := `(?i)((?:` + strings.Join(secretWords, "|") + `)[a-z0-9_]*(?:\\?["'])?\s*[=:]\s*)`
	for _, v := range []struct{ value, by string }{
		{`\\"(?:[^"\\]|\\[^"])*\\"`, `\"` + removed + `\"`},
		{`"(?:[^"\\]|\\.)*"`, `"` + removed + `"`},
		{`'[^']*'`, `'` + removed + `'`},
		{`[^\s"',;}\][{\\]+`, removed},
	} {
		out = append(out, secretValue{regexp.MustCompile(name + v.value), "${1}" + v.by})
	}
	return out
}()

type secretValue struct {
	form *regexp.Regexp
	by   string
}

// withoutSecrets takes out these secrets, and what looks like one, wherever it stands: in a log, in
// an error, in what a hook said. Megabytes go through here, so only lines with a word of interest are
// looked at closely.
func withoutSecrets(text string, secrets []string) string {
	for _, s := range secrets {
		text = strings.ReplaceAll(text, s, removed)
	}
	if strings.Contains(text, "PRIVATE KEY-----") {
		text = privateKey.ReplaceAllString(text, removed)
	}
	var b strings.Builder
	b.Grow(len(text))
	for line := range strings.Lines(text) {
		lower := strings.ToLower(line)
		if strings.Contains(lower, "flk-") {
			line = joinToken.ReplaceAllString(line, removed)
		}
		if slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(lower, w) }) {
			for _, v := range secretValues {
				line = v.form.ReplaceAllString(line, v.by)
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

// secretsOf the cluster, in the forms in which JSON and logs would have them. The sealed
// descriptions of containers are not among them: plainState leaves them out.
func secretsOf(m *member) (out []string) {
	if m == nil {
		return nil
	}
	add := func(secret []byte) { out = append(out, formsOf(secret)...) }
	s := m.cluster.State()
	if c := s.Cluster(); c != nil {
		add(c.CAKey)
		for _, k := range c.GossipKeys {
			add(k)
		}
	}
	for t := range s.Tokens() {
		add(t.Hash)
	}
	return out
}

// formsOf a secret; none of a short one, which would be found in everything.
func formsOf(secret []byte) []string {
	if len(secret) < 8 {
		return nil
	}
	return []string{string(secret), base64.StdEncoding.EncodeToString(secret), hex.EncodeToString(secret)}
}
