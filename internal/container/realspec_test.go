package container

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
)

// TestRealRecreate makes containers of a real engine again and compares what the engine
// says of them before and after, field by field. FLOCKER_RECREATE=1 says that this is a
// machine to play with: a node of a cluster, with the lab's images. Afterwards the
// containers, volumes and networks that it made are gone.
func TestRealRecreate(t *testing.T) {
	d := realDocker(t)
	docker(t, "network", "create", "--label", "com.docker.compose.project=shop", "--subnet", "172.30.0.0/16", "rshop")
	docker(t, "network", "create", "rback")
	t.Cleanup(func() { docker(t, "network", "rm", "rshop", "rback") })
	for _, tc := range []struct {
		name string
		args string
		then string // one more command
	}{
		{"plain", "--volume-driver flocker -v rplain:/data flocker-test/redis:7", ""},
		{"full", "--network rshop --network-alias db --ip 172.30.0.10 --restart unless-stopped -l com.docker.compose.service=db " +
			"-e POSTGRES_PASSWORD=s3cret --mount type=volume,volume-driver=flocker,src=rfull,dst=/var/lib/postgresql/data " +
			"--tmpfs /run/scratch:size=16m -p 15432:5432 --memory 256m --cpus 0.5 --pids-limit 200 --ulimit nofile=2048:4096 " +
			"--cap-drop NET_RAW --cap-add SYS_NICE --log-opt max-size=5m --stop-signal SIGINT --stop-timeout 45 " +
			"--health-cmd true --health-interval 30s --shm-size 128m --hostname dbhost --user root --sysctl net.core.somaxconn=256 " +
			"--add-host other:10.0.0.9 --dns 10.0.0.53 --init --security-opt no-new-privileges flocker-test/postgres:15", ""},
		{"twonets", "--mount type=volume,volume-driver=flocker,src=rtwo,dst=/d,readonly --network rback --network-alias a flocker-test/nginx:1",
			"network connect --alias b rshop follow-twonets"},
		{"onhost", "--mount type=volume,volume-driver=flocker,src=rhost,dst=/d --network host --uts host --pid host flocker-test/busybox:1 sleep 10000", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := "follow-" + tc.name
			docker(t, append([]string{"run", "-d", "--name", name, "-l", LabelEnable + "=true"}, strings.Fields(tc.args)...)...)
			if tc.then != "" {
				docker(t, strings.Fields(tc.then)...)
			}
			t.Cleanup(func() { docker(t, "rm", "-f", "-v", name) })
			before := rawOf(t, d, name)
			was, err := d.Inspect(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			stored, err := was.Spec.Encode()
			if err != nil {
				t.Fatal(err)
			}
			spec, err := DecodeSpec(stored)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.StopContainer(t.Context(), was.ID); err != nil {
				t.Fatal(err)
			}
			if err := d.Retire(t.Context(), was.ID); err != nil {
				t.Fatal(err)
			}
			if got := rawOf(t, d, was.ID)["HostConfig"].(map[string]any)["RestartPolicy"].(map[string]any)["Name"]; got != "no" {
				t.Errorf("retired, its restart policy is %v", got)
			}
			if _, err := d.Recreate(t.Context(), spec, Known{}, stays); err == nil {
				t.Error("a container took the place of one that it may not replace")
			}
			id, err := d.Recreate(t.Context(), spec, Known{Replaces: []string{was.ID}}, stays)
			if err != nil || id == was.ID {
				t.Fatalf("recreated as %s: %v", id, err)
			}
			now, err := d.Inspect(t.Context(), name)
			if err != nil || now.State != Running || now.ID != id {
				t.Fatalf("%s is %s, ID %s: %v", name, now.State, now.ID, err)
			}
			if !reflect.DeepEqual(now.Spec, was.Spec) {
				t.Errorf("described anew it differs:\n%+v\n%+v", show(now.Spec), show(was.Spec))
			}
			compare(t, "", relevant(before, was.ID), relevant(rawOf(t, d, name), id))
			if again, err := d.Recreate(t.Context(), spec, Known{Replaces: []string{was.ID}}, stays); err != nil || again != id {
				t.Errorf("repeated: %s, %v; want %s", again, err, id)
			}
			if _, err := d.Inspect(t.Context(), was.ID); !errors.Is(err, ErrNotFound) {
				t.Errorf("the old one is still there: %v", err)
			}
			if now, err := d.Inspect(t.Context(), id); err != nil || now.Restarts != 0 {
				t.Errorf("it was started again %d times by its engine: %v", now.Restarts, err)
			}
		})
	}
}

// A network that is missing is made like the one that was.
func TestRealNetwork(t *testing.T) {
	d := realDocker(t)
	docker(t, "network", "create", "--label", "a=b", "rgone")
	docker(t, "run", "-d", "--name", "follow-net", "--network", "rgone", "--network-alias", "x",
		"--mount", "type=volume,volume-driver=flocker,src=rnet,dst=/d", "flocker-test/busybox:1", "sleep", "10000")
	t.Cleanup(func() { docker(t, "rm", "-f", "follow-net"); docker(t, "network", "rm", "rgone") })
	was, err := d.Inspect(t.Context(), "follow-net")
	if err != nil {
		t.Fatal(err)
	}
	docker(t, "rm", "-f", "follow-net")
	docker(t, "network", "rm", "rgone")
	if _, err := d.Recreate(t.Context(), was.Spec, Known{}, stays); err != nil {
		t.Fatal(err)
	}
	if got := docker(t, "network", "inspect", "-f", "{{.Labels.a}} {{.Driver}}", "rgone"); got != "b bridge" {
		t.Errorf("the network is %q", got)
	}
}

// An image goes from an engine to one that lacks it, under its name, or under one of
// ours when the name is taken by another.
func TestRealImage(t *testing.T) {
	d := realDocker(t)
	const ref = "flocker-test/nginx:1"
	id := docker(t, "image", "inspect", "-f", "{{.Id}}", ref)
	var layers []string
	if err := json.Unmarshal([]byte(docker(t, "image", "inspect", "-f", "{{json .RootFS.Layers}}", ref)), &layers); err != nil {
		t.Fatal(err)
	}
	i := Image{ID: id, Ref: ref, Layers: layersOf(layers)}
	for _, taken := range []bool{true, false} {
		r, err := d.SaveImage(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		archive, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range strings.Fields(docker(t, "image", "inspect", "-f", "{{join .RepoTags \" \"}}", id)) {
			docker(t, "rmi", tag)
		}
		if got, err := d.LocalImage(t.Context(), i); !errors.Is(err, ErrNotFound) {
			t.Fatalf("removed, it is there as %s, %v", got, err)
		}
		want := ref
		if taken {
			docker(t, "tag", "flocker-test/busybox:1", ref)
			want = keepTag(i)
		}
		if err := d.LoadImage(t.Context(), i, strings.NewReader(string(archive[:len(archive)/2]))); err == nil {
			t.Error("half an archive is loaded")
		}
		if err := d.LoadImage(t.Context(), i, strings.NewReader(string(archive))); err != nil {
			t.Fatal(err)
		}
		got, err := d.LocalImage(t.Context(), i)
		if err != nil || docker(t, "image", "inspect", "-f", "{{.Id}}", want) != id {
			t.Errorf("name taken %t: it is here as %s, %v; want %s", taken, got, err, want)
		}
		if taken && docker(t, "image", "inspect", "-f", "{{.Id}}", ref) == id {
			t.Error("the name was taken from the image that had it")
		}
		if taken {
			docker(t, "rmi", ref)
			if err := d.LoadImage(t.Context(), i, strings.NewReader(string(archive))); err != nil {
				t.Fatal(err)
			}
		}
	}
	docker(t, "image", "inspect", ref)
}

func realDocker(t *testing.T) *Docker {
	t.Helper()
	if os.Getenv("FLOCKER_RECREATE") == "" {
		t.Skip("FLOCKER_RECREATE is not set: no node to play with")
	}
	d := &Docker{Driver: "flocker"}
	t.Cleanup(func() { d.Close() })
	t.Cleanup(func() {
		for _, v := range strings.Fields(docker(t, "volume", "ls", "-q", "-f", "driver=flocker")) {
			if strings.HasPrefix(v, "r") {
				docker(t, "volume", "rm", v)
			}
		}
	})
	return d
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func rawOf(t *testing.T, d *Docker, ref string) map[string]any {
	t.Helper()
	c, err := d.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.ContainerInspect(t.Context(), ref, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := unmarshalExact(info.Raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// relevant leaves out what may differ: IDs, times, paths, and addresses that the engine
// chose.
func relevant(m map[string]any, id string) map[string]any {
	for _, key := range []string{"Id", "Created", "State", "ResolvConfPath", "HostnamePath", "HostsPath", "LogPath", "GraphDriver", "RestartCount"} {
		delete(m, key)
	}
	for _, mount := range list(m["Mounts"]) {
		delete(mount.(map[string]any), "Source") // the driver's, when it is mounted
	}
	config := m["Config"].(map[string]any)
	if host := text(config["Hostname"]); host != "" && strings.HasPrefix(id, host) {
		config["Hostname"] = "made up"
	}
	settings := m["NetworkSettings"].(map[string]any)
	networks := settings["Networks"].(map[string]any)
	for _, e := range networks {
		e := e.(map[string]any)
		aliases := slices.DeleteFunc(list(e["Aliases"]), func(a any) bool { return shortID(text(a), id) })
		e["Aliases"] = aliases
		for _, key := range []string{"EndpointID", "IPAddress", "MacAddress", "DriverOpts", "IPAMConfig"} {
			if v, ok := e[key].(map[string]any); !ok || len(v) == 0 {
				delete(e, key) // generated, or nothing
			}
		}
	}
	m["NetworkSettings"] = map[string]any{"Networks": networks, "Ports": settings["Ports"]}
	return m
}

// compare reports each field that differs.
func compare(t *testing.T, at string, a, b any) {
	t.Helper()
	am, aok := a.(map[string]any)
	bm, bok := b.(map[string]any)
	if !aok || !bok {
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s was %v, is %v", at, a, b)
		}
		return
	}
	all := maps.Clone(am)
	maps.Copy(all, bm)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		compare(t, at+"."+key, am[key], bm[key])
	}
}

func show(s Spec) string {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}
