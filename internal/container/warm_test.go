package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// edit changes what a real engine said of a container.
func edit(t *testing.T, raw []byte, change func(in, config, host map[string]any)) []byte {
	t.Helper()
	var in map[string]any
	if err := unmarshalExact(raw, &in); err != nil {
		t.Fatal(err)
	}
	change(in, in["Config"].(map[string]any), in["HostConfig"].(map[string]any))
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func captured(t *testing.T, raw []byte) Captured {
	t.Helper()
	c, err := Capture(raw, "flocker")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What an engine says of a container that has waited is what it would say of one that was
// started where it is, but for what its user has changed since.
func TestWaiting(t *testing.T) {
	for _, name := range []string{"redis", "compose", "two"} {
		// The first one's own directory is its volume, in which its engine could make none.
		dir, hooks := "", ""
		if name == "redis" {
			dir, hooks = "/", "/data"
		}
		raw := inspected(t, "testdata/inspect/"+name+".json")
		was := captured(t, raw)
		waiting, err := was.Spec.Waiting("flocker", Gate{Token: "t0", Program: "/usr/bin/flockd", Door: "/var/lib/flocker/warm/t0/door"})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var config struct {
			Entrypoint, Cmd []string
			WorkingDir      string
			Labels          map[string]string
		}
		var host struct {
			RestartPolicy struct{ Name string }
			Binds         []string
			Mounts        []struct {
				Type, Source, Target string
				ReadOnly             bool
				VolumeOptions        struct{ NoCopy bool }
			}
		}
		if err := errors.Join(json.Unmarshal(waiting.Config, &config), json.Unmarshal(waiting.HostConfig, &host)); err != nil {
			t.Fatal(err)
		}
		var gates, uncopied int
		for _, m := range host.Mounts {
			if m.Type == "bind" && m.ReadOnly && strings.HasPrefix(m.Target, "/.flocker/") {
				gates++
			}
			if m.VolumeOptions.NoCopy {
				uncopied++
			}
		}
		for _, b := range host.Binds {
			if strings.HasSuffix(b, ":nocopy") {
				uncopied++
			}
		}
		at := was.Spec.VolumeAt("flocker")
		if !slices.Equal(config.Entrypoint, []string{"/.flocker/flockd"}) || !slices.Equal(config.Cmd[:2], []string{"gate", at}) || config.Cmd[3] != "--" ||
			config.WorkingDir != dir || execDir(config.Labels, dir) != hooks || host.RestartPolicy.Name != "no" || gates != 2 || uncopied != 1 {
			t.Errorf("%s: it is made with %+v %+v", name, config, host)
		}

		again := edit(t, raw, func(in, _, _ map[string]any) {
			in["Config"], in["HostConfig"] = json.RawMessage(waiting.Config), json.RawMessage(waiting.HostConfig)
			in["Mounts"] = append(in["Mounts"].([]any), map[string]any{"Type": "bind", "Source": "/usr/bin/flockd", "Destination": "/.flocker/flockd"},
				map[string]any{"Type": "bind", "Source": "/var/lib/flocker/warm/t0/door", "Destination": "/.flocker/door"})
		})
		// The engine's own image name is no part of what it is created with.
		again = edit(t, again, func(_, config, _ map[string]any) { config["Image"] = was.Spec.Image.Ref })
		if now := captured(t, again); !reflect.DeepEqual(plain(t, now.Spec), plain(t, was.Spec)) || now.Labels[labelWarm] != "" {
			t.Errorf("%s: described as\n%s\nand was\n%s", name, plain(t, now.Spec), plain(t, was.Spec))
		}
		updated := captured(t, edit(t, again, func(_, _, host map[string]any) { host["RestartPolicy"] = map[string]any{"Name": "always"} }))
		if !bytes.Contains(updated.Spec.HostConfig, []byte(`"RestartPolicy":{"Name":"always"}`)) {
			t.Errorf("%s: what its user has changed is lost: %s", name, updated.Spec.HostConfig)
		}
	}
}

// plain is a spec as text, with numbers as they are written.
func plain(t *testing.T, s Spec) string {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPrestarts(t *testing.T) {
	type m = map[string]any
	set := func(of, name string, v any) func(in, config, host m) {
		return func(_, config, host m) {
			if of == "Config" {
				config[name] = v
			} else {
				host[name] = v
			}
		}
	}
	mount := func(v m) func(in, config, host m) {
		return func(in, _, _ m) { in["Mounts"] = append(in["Mounts"].([]any), v) }
	}
	for name, c := range map[string]struct {
		change func(in, config, host m)
		want   string // in the reason; "": it can be
	}{
		"plain":           {func(_, _, _ m) {}, ""},
		"host network":    {set("HostConfig", "NetworkMode", "host"), ""},
		"no command":      {func(_, config, _ m) { config["Entrypoint"], config["Cmd"] = nil, nil }, "names a command"},
		"only command":    {set("Config", "Entrypoint", nil), ""},
		"health check":    {set("Config", "Healthcheck", m{"Test": []any{"CMD", "true"}}), "health check"},
		"no health check": {set("Config", "Healthcheck", m{"Test": []any{"NONE"}}), ""},
		"ports":           {set("HostConfig", "PortBindings", m{"80/tcp": []any{m{"HostPort": "80"}}}), "publishes ports"},
		"all ports":       {set("HostConfig", "PublishAllPorts", true), "publishes ports"},
		"init":            {set("HostConfig", "Init", true), "--init"},
		"rm":              {set("HostConfig", "AutoRemove", true), "--rm"},
		"user namespace":  {set("HostConfig", "UsernsMode", "remap"), "user namespace"},
		"runtime":         {set("HostConfig", "Runtime", "runsc"), "runsc"},
		"own network":     {func(in, _, _ m) { in["NetworkSettings"].(m)["Networks"].(m)["app"] = m{} }, "network app"},
		"read-only":       {func(in, _, host m) { in["Mounts"].([]any)[0].(m)["RW"] = false }, "read-only"},
		"option":          {set("HostConfig", "Binds", []any{"cache:/data:z"}), "option z"},
		"twice":           {mount(m{"Type": "volume", "Name": "cache", "Driver": "flocker", "Destination": "/more", "RW": true}), "several"},
		"several":         {mount(m{"Type": "volume", "Name": "other", "Driver": "flocker", "Destination": "/more", "RW": true}), "several"},
		"inside":          {mount(m{"Type": "bind", "Source": "/x", "Destination": "/data/conf", "RW": true}), "/data/conf is mounted inside"},
		"beside":          {mount(m{"Type": "bind", "Source": "/x", "Destination": "/database", "RW": true}), ""},
		"gate hidden":     {mount(m{"Type": "tmpfs", "Destination": "/.flocker", "RW": true}), "/.flocker is mounted"},
		"without a name":  {mount(m{"Type": "volume", "Driver": "local", "Name": strings.Repeat("0", 64), "Destination": "/anon", "RW": true}), "without a name"},
		"part of it": {func(_, _, host m) {
			host["Binds"], host["Mounts"] = nil, []any{m{"Type": "volume", "Source": "cache", "Target": "/data", "VolumeOptions": m{"Subpath": "x"}}}
		}, "a part of"},
	} {
		raw := edit(t, inspected(t, "testdata/inspect/redis.json"), func(in, config, host m) {
			config["Labels"] = m{LabelPrestart: "true"}
			in["NetworkSettings"].(m)["Networks"] = m{"bridge": m{}}
			host["PortBindings"] = m{}
			config["Healthcheck"] = nil
			c.change(in, config, host)
		})
		asked, why := captured(t, raw).Spec.Prestarts("flocker")
		if !asked || (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
			t.Errorf("%s: asked %v, %q; want %q", name, asked, why, c.want)
		}
	}
	if asked, _ := captured(t, inspected(t, "testdata/inspect/redis.json")).Spec.Prestarts("flocker"); asked {
		t.Error("a container without the label asks for it")
	}
}

// One that waits is nobody's user; one that has got its volume is, whatever its label.
func TestWaits(t *testing.T) {
	for name, c := range map[string]struct {
		labels map[string]string
		want   bool
	}{
		"db.flocker-warm": {map[string]string{labelWarm: "{}"}, true}, "db": {map[string]string{labelWarm: "{}"}, false}, "x.flocker-warm": {nil, false},
	} {
		if got := waits(name, c.labels); got != c.want {
			t.Errorf("waits(%s) = %v", name, got)
		}
	}
}

// Cut off at any step, by an error or by a crash: what was to be replaced is there, under
// one of its names, unless the new one runs; and an error leaves nothing that waits.
func TestTakeUp(t *testing.T) {
	for _, withOld := range []bool{false, true} {
		whole := 0
		for at := 0; at <= 4; at++ {
			for _, late := range []bool{false, true} {
				for _, crash := range []bool{false, true} {
					name := fmt.Sprintf("old %t, step %d, late %t, crash %t", withOld, at, late, crash)
					e := &madeEngine{containers: map[string]*Captured{}, cutAt: at, late: late, crash: crash}
					var replaces []string
					if withOld {
						replaces = append(replaces, e.add("db", dbSpec(), Exited).ID)
					}
					id := e.add("db"+warmSuffix, dbSpec(), Running).ID
					err := takeUp(t.Context(), e, dbSpec(), id, Known{Replaces: replaces}, func(ctx context.Context) error {
						if _, bounded := ctx.Deadline(); bounded {
							t.Errorf("%s: its volume has to come as fast as a name", name)
						}
						if e.containers[id].Spec.Name != "db" {
							t.Errorf("%s: it gets its volume before its name: %s", name, e)
						}
						return e.change(func() error { return nil })
					})
					if at == 0 {
						whole = e.steps
					}
					if (err == nil) != (at == 0 || at > whole) {
						t.Errorf("%s: %v", name, err)
					}
					if old := e.containers["id1"]; withOld && (old == nil || err != nil && !crash && old.Spec.Name != "db") {
						t.Errorf("%s: the old container has lost its name, or is gone: %s", name, e)
					}
					if _, there := e.containers[id]; there != (err == nil || crash && !(late && e.steps > whole)) {
						t.Errorf("%s: what waited is there: %v: %s", name, there, e)
					}
				}
			}
		}
		if want := map[bool]int{false: 2, true: 3}[withOld]; whole != want {
			t.Errorf("%d steps seen; want %d", whole, want)
		}
	}
	// What was left beside the name by calls that were cut off is in nobody's way, and the old one
	// is there until it is known that the new one stays.
	asked := dbSpec()
	asked.Config = []byte(`{}`)
	asked, err := asked.MadeFor("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		there Spec
		state State
		says  error
		want  string
	}{
		{dbSpec(), Exited, nil, "db.flocker-old=id2/exited db=id3/running"},
		{asked, Created, nil, "db.flocker-old=id1/exited db=id3/running"},
		{asked, Created, ErrUndecided, "db.flocker-old=id1/exited db=id3/running"},
		{asked, Created, errors.New("it ended"), "db=id1/exited"},
	} {
		e := &madeEngine{containers: map[string]*Captured{}}
		replaces := []string{e.add("db.flocker-old", dbSpec(), Exited).ID}
		if there := e.add("db", c.there, c.state); c.there.madeFor() == "" {
			replaces = append(replaces, there.ID)
		}
		id := e.add("db"+warmSuffix, asked, Running).ID
		if err := takeUp(t.Context(), e, asked, id, Known{Replaces: replaces}, func(context.Context) error { return c.says }); !errors.Is(err, c.says) || e.String() != c.want {
			t.Errorf("%v: %v: %s; want %s", c.says, err, e, c.want)
		}
	}
	// What runs there, or is not ours, or may have done all it had to do, is not touched.
	for _, c := range []struct {
		there Spec
		state State
		want  string
	}{
		{dbSpec(), Running, "runs on this node"},
		{dbSpec(), Exited, "rename or remove it"},
		{dbSpec(), Created, "rename or remove it"},
		{asked, Exited, "how has to be seen first"},
	} {
		e := &madeEngine{containers: map[string]*Captured{}}
		e.add("db", c.there, c.state)
		before := e.String()
		id := e.add("db"+warmSuffix, asked, Running).ID
		err := takeUp(t.Context(), e, asked, id, Known{}, func(context.Context) error {
			t.Error("it gets its volume")
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), c.want) || e.String() != before {
			t.Errorf("%v: %s; want %q and %s", err, e, c.want, before)
		}
	}
}

// One that is not started is not there, or is known by its ID.
func TestPrestart(t *testing.T) {
	for _, c := range []struct {
		cutAt int
		crash bool
		id    string
		err   bool
		want  int // containers
	}{{0, false, "id1", false, 1}, {1, false, "", true, 0}, {2, false, "", true, 0}, {2, true, "id1", true, 1}} {
		e := &madeEngine{containers: map[string]*Captured{}, cutAt: c.cutAt, crash: c.crash}
		id, err := prestart(t.Context(), e, dbSpec())
		if id != c.id || (err != nil) != c.err || len(e.containers) != c.want {
			t.Errorf("%+v: %q, %v: %s", c, id, err, e)
		}
	}
}
