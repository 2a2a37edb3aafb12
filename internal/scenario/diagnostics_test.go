package scenario

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/daemon"
)

// No secret of a cluster is in what its nodes show, whether the cluster keeps it or somebody wrote it
// where the nodes look: in the journal, in a file of the machine.
func TestDiagnosticsHoldNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=2
			run-following n1 web pg
			await pg ok
			followed n2 web n1 running`)
		secrets := map[string]string{"the join token": w.join, "its secret": w.join[strings.LastIndex(w.join, "-")+1:], "the container's environment": "letmein"}
		planted := "joining with " + w.join + "\n" + secret + " started\n"
		add := func(what string, b []byte) {
			t.Helper()
			if len(b) < 8 {
				t.Fatalf("there is no %s to look for", what)
			}
			secrets[what], secrets[what+" in base64"], secrets[what+" in hex"] = string(b), base64.StdEncoding.EncodeToString(b), hex.EncodeToString(b)
		}
		for _, name := range w.Names() {
			s := w.Machine(name).daemon.State()
			add("key of the CA", s.Cluster().CAKey)
			for _, k := range s.Cluster().GossipKeys {
				add("gossip key", k)
				planted += base64.StdEncoding.EncodeToString(k) + " " + hex.EncodeToString(k) + "\n"
			}
			planted += base64.StdEncoding.EncodeToString(s.Cluster().CAKey) + "\n"
			for tok := range s.Tokens() {
				add("hash of a token", tok.Hash)
				planted += hex.EncodeToString(tok.Hash) + "\n"
			}
			containers := 0
			for c := range s.Containers() {
				containers++
				add("sealed container", c.Sealed)
			}
			if containers == 0 {
				t.Fatal("no container is recorded")
			}
			key, err := w.Machine(name).disk.Read("node.key")
			if err != nil {
				t.Fatal(err)
			}
			planted += string(key) + "\n"
			secrets["private key of "+name] = strings.Split(string(key), "\n")[1]
		}
		w.papers = func(string) []daemon.Paper {
			return []daemon.Paper{{Name: "planted.txt", Ask: func(context.Context) (string, error) { return planted, nil }}}
		}
		w.Script(`
			quit n2
			flockd n2
			await pg ok`)

		for _, of := range w.Names() {
			d, err := w.Machine("n1").API().Diagnostics(w.ctx(), api.DiagnosticsQuery{Node: of, Since: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			if d.Node.Name != of {
				t.Errorf("%s answered for %s", d.Node, of)
			}
			files := map[string]string{}
			for _, f := range d.Files {
				files[f.Name] = f.Text
				if f.Error != "" {
					t.Errorf("%s of %s: %s", f.Name, of, f.Error)
				}
				for what, text := range secrets {
					if strings.Contains(f.Text, text) {
						t.Errorf("%s is in %s of %s", what, f.Name, of)
					}
				}
			}
			for name, has := range map[string]string{
				"status.json": `"cluster_id"`, "state.json": `"name": "pg"`, "volumes.json": `"pg"`, "events.json": "volume.created",
				"containers.json": `"web"`, "metrics.txt": "flocker_build_info", "settings.json": "trash-retention", "report.json": `"tank"`, "facts.json": `"certificate"`,
			} {
				if !strings.Contains(files[name], has) {
					t.Errorf("%s of %s has no %s: %.200s", name, of, has, files[name])
				}
			}
			if of == "n2" && !strings.Contains(files["planted.txt"], "joining with [removed]") {
				t.Errorf("n2 shows %q", files["planted.txt"])
			}
		}
	})
}
