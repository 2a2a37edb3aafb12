package daemon

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
)

func TestWithoutSecrets(t *testing.T) {
	const token = "FLK-1-abcdefgh234567abcdefgh234567abcdefgh234567abcdefgh22-abcdefgh-zyxwvu765432zyxwvu765432zy"
	tests := []struct{ in, want string }{
		{"nothing of the kind, 12:00 msg=\"volume made\" volume=pg", "nothing of the kind, 12:00 msg=\"volume made\" volume=pg"},
		{"join with " + token + " at 10.0.0.1", "join with [removed] at 10.0.0.1"},
		{"join with " + strings.ToLower(token), "join with [removed]"},
		{"a\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----\nb", "a\n[removed]\nb"},
		{"cut off: -----BEGIN PRIVATE KEY-----\nMHcCAQ", "cut off: [removed]"},
		{"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"},
		{"env POSTGRES_PASSWORD=hunter2 LANG=C", "env POSTGRES_PASSWORD=[removed] LANG=C"},
		{`{"db_password": "hunter \"2\"", "n": 1}`, `{"db_password": "[removed]", "n": 1}`},
		{`msg="exec: {\"AWS_SECRET_ACCESS_KEY\":\"hunter2\"}" code=1`, `msg="exec: {\"AWS_SECRET_ACCESS_KEY\":\"[removed]\"}" code=1`},
		{"--api-token: 'hunter 2' x", "--api-token: '[removed]' x"},
		{`"tokens": [` + "\n" + `{"id": "k3y"}]`, `"tokens": [` + "\n" + `{"id": "k3y"}]`},
		{"the key is a2V5a2V5a2V5.", "the key is [removed]."},
	}
	for _, tt := range tests {
		if got := withoutSecrets(tt.in, []string{"a2V5a2V5a2V5"}); got != tt.want {
			t.Errorf("%q\ngives %q\nwant  %q", tt.in, got, tt.want)
		}
	}
}

// What is new in the state is shown only when somebody has decided so here.
func TestPlainState(t *testing.T) {
	shown := map[reflect.Type][]string{
		reflect.TypeFor[state.Cluster]():   {"CACert", "CAKey", "GossipKeys", "DataKey"},
		reflect.TypeFor[state.Node]():      {"KeyHash", "KeepReplicas"},
		reflect.TypeFor[state.Container](): {"Key", "Sealed", "Hash", "Published"},
		reflect.TypeFor[state.Token]():     {"Hash"},
	}
	of := map[reflect.Type]int{
		reflect.TypeFor[state.Cluster]():   reflect.TypeFor[plainCluster]().NumField(),
		reflect.TypeFor[state.Node]():      reflect.TypeFor[plainNode]().NumField(),
		reflect.TypeFor[state.Container](): reflect.TypeFor[plainContainer]().NumField(),
		reflect.TypeFor[state.Token]():     6,
	}
	for typ, kept := range shown {
		if got := typ.NumField(); got != of[typ]+len(kept) {
			t.Errorf("%s has %d fields, %d are shown and %d kept back: decide about the new one", typ, got, of[typ], len(kept))
		}
		for _, name := range kept {
			if _, ok := typ.FieldByName(name); !ok {
				t.Errorf("%s has no %s to keep back", typ, name)
			}
		}
	}
	b, err := json.Marshal(plainState(state.New()))
	if err != nil || !strings.Contains(string(b), `"containers":[]`) {
		t.Errorf("an empty state: %s, %v", b, err)
	}
}

// Files are bounded, each and all together, of logs the end stays; a paper that fails or hangs is
// said.
func TestRead(t *testing.T) {
	d := &Daemon{}
	text := func(n int) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return "begin" + strings.Repeat("x", n-8) + "end", nil }
	}
	papers := []Paper{
		{Name: "long", Ask: text(maxPaper + 10)},
		{Name: "log", Log: true, Ask: text(maxPaper + 10)},
		{Name: "half", Ask: func(context.Context) (string, error) { return "PASSWORD=a1", errors.New("secret=b2") }},
		{Name: "odd", Ask: func(context.Context) (string, error) { return "a\xffb", nil }},
	}
	got := d.read(t.Context(), papers, nil)
	if f := got[0]; len(f.Text) != maxPaper || f.Cut != 10 || !strings.HasPrefix(f.Text, "begin") {
		t.Errorf("long: %d bytes, %d cut", len(f.Text), f.Cut)
	}
	if f := got[1]; len(f.Text) != maxPaper || f.Cut != 10 || !strings.HasSuffix(f.Text, "end") {
		t.Errorf("log: %d bytes, %d cut", len(f.Text), f.Cut)
	}
	if f := got[2]; f.Text != "PASSWORD=[removed]" || f.Error != "secret=[removed]" {
		t.Errorf("half: %+v", f)
	}
	if got[3].Text != "a?b" {
		t.Errorf("odd: %q", got[3].Text)
	}
	var many []Paper
	for range 20 {
		many = append(many, Paper{Name: "m", Ask: text(maxPaper)})
	}
	total, cut := 0, 0
	for _, f := range d.read(t.Context(), many, nil) {
		total += len(f.Text)
		if f.Cut > 0 {
			cut++
		}
	}
	if total != maxPapers || cut != 20-maxPapers/maxPaper {
		t.Errorf("all together %d bytes, %d files cut", total, cut)
	}
	d.asking.wait()
}

func TestSecretsOf(t *testing.T) {
	if got := secretsOf(nil); got != nil {
		t.Errorf("of a machine in no cluster: %q", got)
	}
	long := []byte("0123456789abcdef")
	text := withoutSecrets("x "+base64.StdEncoding.EncodeToString(long)+" y", formsOf(long))
	if text != "x [removed] y" || formsOf([]byte("short")) != nil {
		t.Errorf("got %q, %q", text, formsOf([]byte("short")))
	}
}
