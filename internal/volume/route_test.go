package volume

import (
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
