package proxy

import (
	"encoding/binary"
	"net/netip"
	"regexp"
	"testing"
)

func TestAnnounceHeader(t *testing.T) {
	for _, c := range []struct {
		announce   Announce
		client, to string
		want       string
	}{
		{AnnounceNone, "10.0.0.1:1000", "10.0.0.2:80", ""},
		{AnnounceV1, "10.0.0.1:1000", "10.0.0.2:80", "PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n"},
		{AnnounceV1, "[::ffff:10.0.0.1]:1000", "10.0.0.2:80", "PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n"},
		{AnnounceV1, "[fd00::1%eth0]:1000", "[fd00::2]:80", "PROXY TCP6 fd00::1 fd00::2 1000 80\r\n"},
		{AnnounceV1, "[fd00::1]:1000", "10.0.0.2:80", "PROXY TCP6 fd00::1 ::ffff:a00:2 1000 80\r\n"},
		{AnnounceV1, "", "10.0.0.2:80", "PROXY UNKNOWN\r\n"},
		{AnnounceV2, "10.0.0.1:258", "10.0.0.2:80", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x01\x02\x00\x50"},
		{AnnounceV2, "[fd00::1]:258", "[fd00::2]:80", "\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
			"\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x01\x02\x00\x50"},
		{AnnounceV2, "", "10.0.0.2:80", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"},
	} {
		client, _ := netip.ParseAddrPort(c.client)
		to, err := netip.ParseAddrPort(c.to)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(c.announce.header(client, to)); got != c.want {
			t.Errorf("%s from %q to %s: %q, want %q", c.announce, c.client, c.to, got, c.want)
		}
	}
}

// Whatever another node says of a client, a server reads one header, and all of it.
func FuzzAnnounce(f *testing.F) {
	f.Add("192.0.2.1:1234", "198.51.100.2:80")
	f.Add("[2001:db8::1]:1234", "198.51.100.2:80")
	f.Add("[fe80::1%a\r\nGET / HTTP/1.1]:1", "[::ffff:192.0.2.1]:80")
	f.Add("", "nonsense")
	line := regexp.MustCompile(`^PROXY (UNKNOWN|TCP4 [0-9.]+ [0-9.]+ \d+ \d+|TCP6 [0-9a-f:]+ [0-9a-f:]+ \d+ \d+)\r\n$`)
	f.Fuzz(func(t *testing.T, client, at string) {
		for _, a := range []Announce{AnnounceV1, AnnounceV2} {
			conn := &heardConn{}
			if err := a.write(conn, client, at); err != nil {
				t.Fatal(err)
			}
			const mostV1, headV2 = 107, 16
			got := conn.out.Bytes()
			if a == AnnounceV1 && (len(got) > mostV1 || !line.Match(got)) {
				t.Errorf("%q", got)
			}
			if a == AnnounceV2 && len(got) != headV2+int(binary.BigEndian.Uint16(got[14:])) {
				t.Errorf("%q is of another length than it says", got)
			}
		}
	})
}
