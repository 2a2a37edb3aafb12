package volume

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseRoutes(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", ""},
		{"none", ""},
		{"80", "80:80/tcp"},
		{"80:8080", "80:8080/tcp"},
		{"5432/postgres", "5432:5432/postgres"},
		{"5432:5433/postgres,80:8080/http", "80:8080/http,5432:5433/postgres"},
		{"443/tls,6379/redis", "443:443/tls,6379:6379/redis"},
		{"80/tcp/cut,81:82/http", "80:80/tcp/cut,81:82/http"},
		{"80/cut", `refused: no mode "cut"`},
		{"80/tcp/proxy1,81/http/cut/proxy2,443/tls/proxy2/cut", "80:80/tcp/proxy1,81:81/http/cut/proxy2,443:443/tls/cut/proxy2"},
		{"80/tcp/", `refused: "" after the mode: only cut, proxy1, proxy2, tls, passtls or auth may stand there`},
		{"80/tcp/proxy", `refused: "proxy" after the mode: only cut, proxy1, proxy2, tls, passtls or auth may stand there`},
		{"80/tcp/proxy3", `refused: "proxy3" after the mode`},
		{"80/tcp/cut/cut", `refused: "cut" is there twice after the mode`},
		{"80/tcp/cut/", `refused: "" after the mode`},
		{"80/tcp/proxy1/proxy2", `refused: proxy1 and proxy2 after the mode`},
		{"5432/postgres/auth/cut/tls,5433/postgres/passtls,5434/postgres/tls", "5432:5432/postgres/cut/tls/auth,5433:5433/postgres/passtls,5434:5434/postgres/tls"},
		{"80/http/tls", `refused: mode http with tls, passtls or auth: only postgres has these`},
		{"80/tls/auth", `refused: mode tls with tls, passtls or auth: only postgres has these`},
		{"5432/postgres/passtls/auth", `refused: passtls with tls or auth: what is enciphered`},
		{"5432/postgres/tls/passtls", `refused: passtls with tls or auth: what is enciphered`},
		{"80/proxy1", `refused: no mode "proxy1"`},
		{"80/redis/proxy1", `refused: proxy1 in mode redis: no such server reads`},
		{"80/postgres/cut/proxy2", `refused: proxy2 in mode postgres: no such server reads`},
		{"80/", `refused: no mode ""; there are tcp, http, redis, postgres or tls`},
		{"80/ftp", `refused: no mode "ftp"`},
		{"80/HTTP", `refused: no mode "HTTP"`},
		{"80:", `refused: "" is no port of the container`},
		{":80", `refused: "" is no port to listen on`},
		{"0", `refused: "0" is no port`},
		{"65536", `refused: "65536" is no port`},
		{"080", `refused: "080" is no port`},
		{"+80", `refused: "+80" is no port`},
		{"80:80:80", `refused: "80:80" is no port of the container`},
		{"127.0.0.1:80", `refused: "127.0.0.1" is no port to listen on`},
		{"80,", `refused: "" is no port`},
		{"80, 81", `refused: " 81" is no port`},
		{"80:1,80:2", `refused: port 80 is there twice`},
		{"http", `refused: "http" is no port`},
		{"80/http@a.example.org", "80:80/http@a.example.org"},
		{"443/tls/proxy2/cut@B.Example.org.@*.b.example.org@x_1-y", "443:443/tls/cut/proxy2@b.example.org@*.b.example.org@x_1-y"},
		{"80:1/http@b,80:2/http@a,80:3/http,79/http@b", "79:79/http@b,80:3/http,80:2/http@a,80:1/http@b"},
		{"80:1/http@b@a,80:2/http@c@a", "refused: port 80 for a is there twice"},
		{"80:1/http@a,80:2/http@b@a", "refused: port 80 for a is there twice"},
		{"80:1/http@a,80:2/tls@b", "refused: port 80 is there twice"},
		{"80:1/http@a,80:2/http@*.a,80:3/http", "80:3/http,80:2/http@*.a,80:1/http@a"},
		{"80/http,80:81/http", "refused: port 80 is there twice"},
		{"80@a.example.org", `refused: mode tcp with the name "a.example.org": only http and tls say which name is wanted`},
		{"80/redis@a", `refused: mode redis with the name "a"`},
		{"80/http@", `refused: "" is no name of a host: between dots are 1 to 63 bytes`},
		{"80/http@a@", `refused: "" is no name of a host`},
		{"80/http@a@A", `refused: the name "a" is there twice`},
		{"80/http@a..b", `refused: "a..b" is no name of a host`},
		{"80/http@a..", `refused: "a.." is no name of a host`},
		{"80/http@-a", `refused: "-a" is no name of a host: a label neither begins nor ends with -`},
		{"80/http@a-.b", `refused: "a-.b" is no name of a host: a label neither begins`},
		{"80/http@*", `refused: "*" is no name of a host: a * stands for the first label`},
		{"80/http@*.*.b", `refused: "*.*.b" is no name of a host: a * stands`},
		{"80/http@a.*", `refused: "a.*" is no name of a host: a * stands`},
		{"80/http@*a.b", `refused: "*a.b" is no name of a host: a * stands`},
		{"80/http@*.", `refused: "*." is no name of a host: a * stands`},
		{"80/http@10.0.0.1", `refused: "10.0.0.1" is no name of a host: it is an address`},
		{"80/http@a:80", `refused: "a:80" is no name of a host: it has letters`},
		{"80/http@ä.example.org", `refused: "\u00e4.example.org" is no name of a host: it has letters, digits, - and dots; others are written xn--`},
		{"80/http@" + strings.Repeat("a", 64), `refused: "aaaa`},
		{"80/http@" + strings.Repeat("a.", 126) + "aa", `refused: "a.a.`},
	}
	for _, tt := range tests {
		routes, err := ParseRoutes(tt.text)
		got := FormatRoutes(routes)
		if err != nil {
			got = "refused: " + err.Error()
		}
		if got != tt.want && !(err != nil && strings.HasPrefix(tt.want, "refused") && strings.HasPrefix(got, tt.want)) {
			t.Errorf("ParseRoutes(%q): got %s, want %s", tt.text, got, tt.want)
		}
		if again, err := ParseRoutes(FormatRoutes(routes)); err != nil || FormatRoutes(again) != FormatRoutes(routes) {
			t.Errorf("ParseRoutes(%q): what is written is read as %v, %v", tt.text, again, err)
		}
	}
}

func TestLabelledRoutes(t *testing.T) {
	tests := []struct{ labels, want string }{
		{"", ""},
		{"flocker.enable=true flocker.proxymity=x", ""},
		{"flocker.proxy.db.listen=5432 flocker.proxy.db.mode=postgres", "5432:5432/postgres"},
		{"flocker.proxy.web.listen=80 flocker.proxy.web.port=8080 flocker.proxy.web.mode=http flocker.proxy.adm.listen=79", "79:79/tcp,80:8080/http"},
		{"flocker.proxy.a.b.listen=80", "80:80/tcp"},
		{"flocker.proxy.web.listen=80 flocker.proxy.web.mode=http/proxy2", "80:80/http/proxy2"},
		{"flocker.proxy.db.listen=5432 flocker.proxy.db.mode=postgres/tls/auth", "5432:5432/postgres/tls/auth"},
		{"flocker.proxy.db.port=5432", "refused: label flocker.proxy.db.listen: it is not there"},
		{"flocker.proxy.db.listen=", "refused: label flocker.proxy.db.listen: it is not there"},
		{"flocker.proxy.db.listen=x", `refused: labels flocker.proxy.db: "x" is no port`},
		{"flocker.proxy.db.listen=80:81", `80:81/tcp`},
		{"flocker.proxy.db.listen=80:81 flocker.proxy.db.port=82", `refused: labels flocker.proxy.db: "81:82" is no port`},
		{"flocker.proxy.db.lisen=80", `refused: label "flocker.proxy.db.lisen"`},
		{"flocker.proxy.listen=80", `refused: label "flocker.proxy.listen"`},
		{"flocker.proxy.web.listen=80 flocker.proxy.web.mode=http flocker.proxy.web.host=a.example.org,B.example.org", "80:80/http@a.example.org@b.example.org"},
		{"flocker.proxy.web.listen=80 flocker.proxy.web.mode=http flocker.proxy.web.host=", `refused: labels flocker.proxy.web: "" is no name`},
		{"flocker.proxy.web.listen=80 flocker.proxy.web.host=a", `refused: labels flocker.proxy.web: mode tcp with the name "a"`},
		{"flocker.proxy.web.listen=80 flocker.proxy.web.mode=http flocker.proxy.web.host=a,", `refused: labels flocker.proxy.web: "" is no name`},
		{"flocker.proxy.a.listen=80 flocker.proxy.a.mode=http flocker.proxy.a.host=a flocker.proxy.b.listen=80 flocker.proxy.b.port=81 flocker.proxy.b.mode=http", "80:81/http,80:80/http@a"},
		{"flocker.proxy.a.listen=80 flocker.proxy.b.listen=80", "refused: labels flocker.proxy.: port 80 is there twice"},
	}
	for _, tt := range tests {
		labels := map[string]string{}
		for _, w := range strings.Fields(tt.labels) {
			k, v, _ := strings.Cut(w, "=")
			labels[k] = v
		}
		routes, err := LabelledRoutes(labels)
		got := FormatRoutes(routes)
		if err != nil {
			got = "refused: " + err.Error()
		}
		if got != tt.want && !(err != nil && strings.HasPrefix(tt.want, "refused") && strings.HasPrefix(got, tt.want)) {
			t.Errorf("labels %s: got %s, want %s", tt.labels, got, tt.want)
		}
	}
}

// What commands call a route, and which one that is.
func TestRouteRef(t *testing.T) {
	routes, err := ParseRoutes("79/redis,80:1/http,80:2/http@a@b,80:3/http@*.a,443/tls@a")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ text, want string }{
		{"79", "79:79/redis"},
		{"79@", "79:79/redis"},
		{"79@a", "no route on port 79 is 79@a"},
		{"80@", "80:1/http"},
		{"80@b", "80:2/http@a@b"},
		{"80@A.", "80:2/http@a@b"},
		{"80@*.a", "80:3/http@*.a"},
		{"80@x.a", "no route on port 80 is 80@x.a"},
		{"80", "3 routes listen on port 80: 80@, 80@*.a, 80@a; name one of them"},
		{"443", "443:443/tls@a"},
		{"81", "no route listens on port 81"},
		{"x", `"x" is no port`},
		{"80:1", `"80:1" is no port`},
	}
	for _, tt := range tests {
		ref, err := ParseRouteRef(tt.text)
		i := -1
		if err == nil {
			i, err = ref.Find(routes)
		}
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = routes[i].String()
		}
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: got %s, want %s", tt.text, got, tt.want)
		}
	}
	for _, r := range routes {
		text, err := json.Marshal(r.Key())
		var back RouteKey
		if err == nil {
			err = json.Unmarshal(text, &back)
		}
		if plain := r.Host == ""; err != nil || back != r.Key() || plain != (text[0] != '"') {
			t.Errorf("the key of %s is written %s and read as %v, %v", r, text, back, err)
		}
	}
	for _, bad := range []string{`"x"`, `0`, `{}`, `"80`, `null`} {
		if err := json.Unmarshal([]byte(bad), new(RouteKey)); err == nil {
			t.Errorf("%s is read as a key", bad)
		}
	}
}

// A route is found by what it is named among others.
func TestRouteRefOf(t *testing.T) {
	var all []Route
	want := []string{"80@", "80@a", "80@*.a", "81", "82@c"}
	for _, text := range []string{"80:1/http", "80:2/http@a@b", "80:3/http@*.a", "81:1/http", "82:1/http@c"} {
		r, err := ParseRoute(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	for i, r := range all {
		ref := r.Ref(all)
		if found, err := ref.Find(all); err != nil || found != i || ref.String() != want[i] {
			t.Errorf("%s is named %s, want %s, which finds route %d, %v", r, ref, want[i], found, err)
		}
	}
}
