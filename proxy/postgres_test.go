package proxy

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// pgMessageOf is the message that testdata/postgres.txt has this word for.
func pgMessageOf(t testing.TB, word string) []byte {
	t.Helper()
	name, value, _ := strings.Cut(word, ":")
	m := pgMessages(nil)
	switch name {
	case "half":
		return m.add('C', "half")[:7]
	case "Unknown":
		return m.add('!')
	case "Startup":
		return m.add(0, int32(pgVersion3), "user", "me", byte(0))
	case "Query":
		return m.add('Q', value)
	case "Parse":
		return m.parse(value, "SELECT unnamed")
	case "Describe":
		return m.add('D', value)
	case "Close":
		return m.add('C', byte('S'), value)
	case "Authentication":
		return m.add('R', map[string]int32{"0": 0, "10": 10}[value])
	case "Key":
		return m.add('K', int32(1), int32(2))
	case "Parameter":
		name, v, _ := strings.Cut(value, "=")
		return m.add('S', name, v)
	case "Ready":
		return m.add('Z', value[0])
	case "Error":
		return m.add('E', byte('S'), "ERROR", byte('C'), value, byte('M'), "no", byte(0))
	case "Row":
		columns := append(strings.Split(value, ","), "", "", "")[:4]
		fields := []any{int16(len(columns))}
		for i, c := range columns {
			if i > 1 { // texts
				c = strings.ReplaceAll(c, "_", " ")
			}
			fields = append(fields, int32(len(c)), []byte(c))
		}
		return m.add('D', fields...)
	}
	kind := map[string]byte{
		"Bind": 'B', "Execute": 'E', "Sync": 'S', "Flush": 'H', "FunctionCall": 'F', "Terminate": 'X',
		"CopyData": 'd', "CopyDone": 'c', "CopyFail": 'f',
		"RowDescription": 'T', "DataRow": 'D', "CommandComplete": 'C', "EmptyQuery": 'I', "PortalSuspended": 's', "NoData": 'n',
		"ParseComplete": '1', "BindComplete": '2', "CloseComplete": '3', "ParameterDescription": 't', "FunctionCallResponse": 'V',
		"CopyIn": 'G', "CopyOut": 'H', "CopyBoth": 'W', "Notice": 'N', "Notification": 'A',
	}[name]
	if kind == 0 {
		t.Fatalf("there is no message %q", word)
	}
	return m.add(kind, []byte("xxxx"))
}

func pgBytesOf(t testing.TB, words string) (out []byte) {
	t.Helper()
	if words == "-" {
		return nil
	}
	for _, w := range strings.Fields(words) {
		out = append(out, pgMessageOf(t, w)...)
	}
	return out
}

func newTestPgFramer() *pgFramer {
	return postgresProtocol(PostgresOptions{}).framer().(*pgFramer)
}

// pgHear has a framer follow what the client says, cut into pieces.
func pgHear(t testing.TB, f *pgFramer, words []byte, piece func() int) {
	t.Helper()
	for len(words) > 0 && f.pinned() == "" {
		p := words[:min(len(words), piece())]
		n, err := f.request(p)
		if n == 0 && err == nil {
			t.Fatalf("nothing was taken of %q", p)
		}
		if err != nil && f.pinned() == "" {
			t.Errorf("%v, and it goes on", err)
		}
		words = words[n:]
	}
}

// pgPass has a framer follow what the server says, cut into pieces.
func pgPass(t testing.TB, f *pgFramer, words []byte, piece func() int) (pass []byte) {
	t.Helper()
	for len(words) > 0 {
		p := bytes.Clone(words[:min(len(words), piece())])
		words = words[len(p):]
		if f.pinned() != "" {
			pass = append(pass, p...)
			continue
		}
		if err := f.reply(p); err != nil && f.pinned() == "" {
			t.Errorf("%v, and it goes on", err)
		}
		pass = append(pass, f.pass()...)
	}
	return pass
}

// described are the steps that come after a session's settings.
func described(f *pgFramer) string {
	var out []string
	for _, s := range f.steps()[1:] {
		text := func(m []byte, skip int) string {
			for range skip {
				_, m, _ = pgString(m)
			}
			s, _, _ := pgString(m)
			return s
		}
		switch body := s.messages[5:]; {
		case s.what == "the unnamed statement":
			if f.unnamed != nil {
				out = append(out, strings.TrimPrefix(text(f.unnamed.body, 1), "SELECT "))
			}
		case strings.HasPrefix(s.what, "the prepared") && text(body, 0) != "":
			name, types := text(body, 0), ""
			for _, p := range f.state.prepared {
				if p.name == name {
					types = strings.Trim(fmt.Sprint(p.types), "[]")
				}
			}
			out = append(out, "Parse "+name+" "+types)
		default:
			out = append(out, "run "+text(body, 1))
		}
	}
	return strings.Join(out, ", ")
}

func TestPostgresFramer(t *testing.T) {
	text, err := os.ReadFile("testdata/postgres.txt")
	if err != nil {
		t.Fatal(err)
	}
	for what, piece := range map[string]func() int{
		"at once":         func() int { return 1 << 20 },
		"byte by byte":    func() int { return 1 },
		"three at a time": func() int { return 3 },
	} {
		var f *pgFramer
		var passed []byte
		for no, line := range strings.Split(string(text), "\n") {
			at := fmt.Sprintf("testdata/postgres.txt:%d, %s: %s", no+1, what, line)
			word, rest, _ := strings.Cut(line, " ")
			switch word {
			case "new", "case:":
				f = newTestPgFramer()
				if word == "case:" {
					pgHear(t, f, pgBytesOf(t, "Startup"), piece)
					pgPass(t, f, pgBytesOf(t, "Authentication:0 Ready:I"), piece)
				}
			case ">":
				pgHear(t, f, pgBytesOf(t, rest), piece)
			case "<":
				passed = pgPass(t, f, pgBytesOf(t, rest), piece)
			case "~":
				if want := pgBytesOf(t, rest); !bytes.Equal(passed, want) {
					t.Errorf("%s: it was %q", at, passed)
				}
			case "ask":
				if q := f.question(); (q == nil) != (rest == "-") {
					t.Errorf("%s: the question is %q", at, q)
				}
			case "=":
				if got := dash(f.busy()); got != rest {
					t.Errorf("%s: busy is %q", at, got)
				}
			case "open", "shut":
				if f.open() != (word == "open") {
					t.Errorf("%s: it is not", at)
				}
			case "+":
				if got := dash(described(f)); got != rest {
					t.Errorf("%s: it would be told %s", at, got)
				}
			case "", "#":
			default:
				t.Fatalf("%s: what is that?", at)
			}
		}
	}
}

// A server may be told of many statements before it answers the first. What is kept of them
// has an end; the last one is, for it is the one that counts.
func TestPostgresKeepsSoMuch(t *testing.T) {
	f := newTestPgFramer()
	one := func() int { return 1 << 30 }
	pgHear(t, f, pgMessages(nil).add(0, int32(pgVersion3), "user", "u", byte(0)), one)
	pgPass(t, f, pgMessages(nil).add('R', int32(0)).add('Z', byte('I')), one)
	const long, many, short = 100 << 10, 50, 40_000
	statement := func(i int) string { return fmt.Sprintf("SELECT %d, '%s'", i, strings.Repeat("x", long)) }
	for i := range many {
		pgHear(t, f, pgMessages(nil).parse("", statement(i)), one)
		size := 0
		for _, u := range f.parses {
			size += u.size()
		}
		if size > pgMaxParses || size != f.kept {
			t.Fatalf("after %d statements %d bytes are kept, and counted as %d", i+1, size, f.kept)
		}
	}
	for range short { // none of which takes the longer the more there are
		pgHear(t, f, pgMessages(nil).parse("", "SELECT 1"), one)
	}
	if n := len(f.parses) * int(unsafe.Sizeof(pgUnnamed{})); n > pgMaxParses {
		t.Errorf("%d short statements take %d bytes besides their text", len(f.parses), n)
	}
	pgHear(t, f, pgMessages(nil).parse("", statement(many)).add('S'), one)
	pgPass(t, f, pgMessages(nil).add('1'), one)
	if f.unnamed == nil || !f.unnamed.long {
		t.Errorf("the first statement is %+v, want one that is known to be missing", f.unnamed)
	}
	for range many + short {
		pgPass(t, f, pgMessages(nil).add('1'), one)
	}
	pgPass(t, f, pgMessages(nil).add('Z', byte('I')), one)
	if want := string(pgMessages(nil).parse("", statement(many))[5:]); f.unnamed == nil || string(f.unnamed.body) != want {
		t.Error("the last statement is not kept")
	}
	if f.busy() != "" || f.kept != 0 || f.emptied != 0 || len(f.parses) != 0 {
		t.Errorf("with all answers it is busy with %q, and keeps %d bytes of %d statements", f.busy(), f.kept, len(f.parses))
	}
}

func TestPostgresWords(t *testing.T) {
	const setConfig = "a call of set_config for a name that is not in its text"
	for _, c := range []struct{ text, names, keeps string }{
		{"SELECT offset FROM settings", "", ""},
		{"set my.var = 1; SET SESSION App.User_id to 'x'", "app.user_id my.var", ""},
		{"SET search_path = a.b", "", ""},
		{`SET "my"."var" = 1`, "my.var", ""},
		{"reset my.var", "", ""},
		{"SELECT set_config('my.var', $1, false), pg_catalog.set_config ( 'other.one', 'x', true)", "my.var other.one", ""},
		{"SELECT set_config('search_path', $1, true)", "", ""},
		{"SELECT set_config($1, $2, false)", "", setConfig},
		{"SELECT xset_config($1, $2)", "", ""},
		{"SELECT currval('s')", "", "the use of currval or lastval, which only its own connection knows"},
		{"SELECT LASTVAL()", "", "the use of currval or lastval, which only its own connection knows"},
		{"LOAD 'auto_explain'", "", "a library that it has loaded"},
		{"SELECT load FROM machines", "", ""},
		{"set a.b{};--", "a.b", ""},
		{"set", "", ""}, {"set ", "", ""}, {"set_config(", "", ""}, {"set_config('a.b", "", ""},
	} {
		for _, size := range []int{1, 7, 1000} {
			var w pgWords
			for p := []byte(c.text); len(p) > 0; {
				n := min(size, len(p))
				w.scan(p[:n], n < len(p))
				p = p[n:]
			}
			got := strings.Join(slices.Sorted(maps.Keys(w.names)), " ")
			if got != c.names || w.keeps != c.keeps {
				t.Errorf("%q in pieces of %d: names %q, keeps %q", c.text, size, got, w.keeps)
			}
		}
	}
}

// However a session is cut into pieces, a framer judges it the same, and what the server
// said is for the client, but for the answer to the gate's question.
func FuzzPostgresSession(f *testing.F) {
	f.Add(pgBytesOf(f, "Startup Query:SET_a.b Parse: Bind Execute Sync"), pgBytesOf(f, "Authentication:0 Key Ready:I CommandComplete Ready:I ParseComplete BindComplete CommandComplete Ready:T"), uint64(1))
	f.Add(pgBytesOf(f, "Startup Parse:s Bind Execute Sync Query:a Close: Describe:x CopyDone"), pgBytesOf(f, "Authentication:0 Ready:I Error Ready:E CopyIn Notice Parameter:a=b"), uint64(2))
	f.Add(pgBytesOf(f, "Startup Query:COPY CopyData CopyDone Sync"), pgBytesOf(f, "Authentication:0 Ready:I CopyIn CommandComplete Ready:I"), uint64(3))
	f.Add(pgBytesOf(f, "Startup"), pgBytesOf(f, "Authentication:0 Ready:I Row:login,me,none, Row:prepared,x,PREPARE_x,23_a Row:setting,a.b,c Notification Ready:I"), uint64(4))
	f.Fuzz(followBoth)
}

// So it is when both sides say only what the protocol has words for, in any order.
func FuzzPostgresWords(f *testing.F) {
	requests := strings.Fields("Query:a Parse: Parse:s Bind Describe:x Execute Sync Flush Close: Close:s CopyData CopyDone CopyFail FunctionCall Query:SET_a.b")
	answers := strings.Fields("Ready:I Ready:T Ready:E CommandComplete ParseComplete BindComplete CloseComplete RowDescription NoData DataRow " +
		"PortalSuspended EmptyQuery Error CopyIn CopyOut Notice Notification Parameter:a=b Row:login,me,none,super Row:channel,news Row:keeps,it")
	f.Add([]byte{0, 3, 5, 6}, []byte{3, 0, 5, 3, 0}, uint64(1))
	f.Fuzz(func(t *testing.T, asks, says []byte, seed uint64) {
		said, heard := pgBytesOf(t, "Startup"), pgBytesOf(t, "Authentication:0 Ready:I")
		for _, b := range asks[:min(len(asks), 100)] {
			said = append(said, pgMessageOf(t, requests[int(b)%len(requests)])...)
		}
		for _, b := range says[:min(len(says), 100)] {
			heard = append(heard, pgMessageOf(t, answers[int(b)%len(answers)])...)
		}
		followBoth(t, said, heard, seed)
	})
}

// followBoth has two framers follow the same session, one of them in pieces.
func followBoth(t *testing.T, requests, answers []byte, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	// Each side speaks until the other's turn; a question comes where it may.
	turn := func(p *[]byte) (part []byte) {
		n := random.IntN(len(*p) + 1)
		part, *p = (*p)[:n], (*p)[n:]
		return part
	}
	whole, pieces := newTestPgFramer(), newTestPgFramer()
	for i := 0; len(requests)+len(answers) > 0 && i < 100; i++ {
		if q := random.IntN(4) == 0; q && whole.busy() == "" && !whole.open() && pieces.busy() == "" && whole.startup != nil {
			if (whole.question() == nil) != (pieces.question() == nil) {
				t.Error("one of them is asked")
			}
		}
		said, heard := turn(&requests), turn(&answers)
		pgHear(t, whole, said, func() int { return 1 << 20 })
		pgHear(t, pieces, said, func() int { return 1 + random.IntN(5) })
		asked := bytes.IndexByte(whole.waiting, pgQuestion) >= 0
		a := pgPass(t, whole, heard, func() int { return 1 << 20 })
		b := pgPass(t, pieces, heard, func() int { return 1 + random.IntN(5) })
		if whole.pinned() == "" && pieces.pinned() == "" && !bytes.Equal(a, b) {
			t.Errorf("of %q the client gets %q as a whole, %q in pieces", heard, a, b)
		}
		if !asked && !bytes.Equal(a, heard) {
			t.Errorf("of %q the client gets %q", heard, a)
		}
		if x, y := whole.busy(), pieces.busy(); x != y {
			t.Fatalf("busy is %q as a whole, %q in pieces", x, y)
		}
		if whole.busy() == "" && (whole.open() || whole.pinned() != "" || !whole.between()) {
			t.Error("it would be parked though something is open")
		}
	}
	_ = described(whole)
}

// The example of RFC 7677.
func TestScram(t *testing.T) {
	salt := []byte{0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81}
	keys, err := scramKeysOf("pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	v := scramVerifier{4096, salt, hashOf(keys.client), keys.server}
	client := newScramClient(func([]byte, int) (scramKeys, error) { return keys, nil })
	client.user, client.nonce = "user", "rOprNGfwEbeRWgbNEkqO"
	server := newScramServer(v)
	server.nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	challenge, err := server.challenge(client.first())
	if err != nil || challenge != "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096" {
		t.Fatalf("challenge: %s, %v", challenge, err)
	}
	final, err := client.answer(challenge)
	if err != nil || final != "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=" {
		t.Fatalf("answer: %s, %v", final, err)
	}
	end, got, err := server.verify(final)
	if err != nil || end != "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" || !bytes.Equal(got.client, keys.client) {
		t.Fatalf("verified: %s, %v", end, err)
	}
	if err := client.check(end); err != nil {
		t.Error(err)
	}
	if err := client.check("v=AAAA"); err == nil {
		t.Error("a server that does not know the verifier is taken for one that does")
	}
	wrong, err := scramKeysOf("pencils", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	liar := newScramClient(func([]byte, int) (scramKeys, error) { return wrong, nil })
	server = newScramServer(v)
	if challenge, err = server.challenge(liar.first()); err != nil {
		t.Fatal(err)
	}
	if final, err = liar.answer(challenge); err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.verify(final); err != errPassword {
		t.Errorf("the wrong password: %v", err)
	}
}

// What a client may say instead of what SCRAM wants is refused.
func FuzzScram(f *testing.F) {
	f.Add("n,,n=,r=abc", "c=biws,r=abc,p=AAAA")
	f.Add("p=tls-unique,,n=,r=abc", "c=,r=,p=")
	f.Fuzz(func(t *testing.T, first, final string) {
		server := newScramServer(scramVerifier{4096, []byte("salt"), make([]byte, 32), make([]byte, 32)})
		if _, err := server.challenge(first); err != nil {
			return
		}
		if _, _, err := server.verify(final); err == nil {
			t.Errorf("%q, %q: it is let in", first, final)
		}
		_, _ = parseScramVerifier(final)
		_, _ = newScramClient(func([]byte, int) (scramKeys, error) { return scramKeys{}, nil }).answer(final)
	})
}

// pgModel answers as the server does, in the order it does, with errors where it likes.
type pgModel struct {
	random   *rand.Rand
	status   byte
	deaf     bool // up to Sync
	unsynced bool
	copying  byte // within rows that this kind of message asked for
	out      []string
}

func (m *pgModel) says(words ...string) { m.out = append(m.out, words...) }

func (m *pgModel) ready() { m.says("Ready:" + string(m.status)) }

func (m *pgModel) fails() bool {
	if m.random.IntN(6) > 0 {
		return false
	}
	m.says("Error")
	if m.status == 'T' {
		m.status = 'E'
	}
	return true
}

// copyEnds ends rows, with or without an error.
func (m *pgModel) copyEnds(failed bool) {
	switch {
	case m.copying == 'E':
		m.deaf = failed
	case m.copying == 'Q':
		defer m.ready()
	}
	if m.copying = 0; !failed {
		m.says("CommandComplete")
	}
}

func (m *pgModel) hears(word string) {
	name, _, _ := strings.Cut(word, ":")
	if m.copying != 0 {
		switch name {
		case "CopyData":
			if m.fails() {
				m.copyEnds(true)
			}
		case "CopyDone":
			m.copyEnds(false)
		case "CopyFail":
			m.says("Error")
			if m.status == 'T' {
				m.status = 'E'
			}
			m.copyEnds(true)
		}
		return
	}
	switch {
	case name == "CopyData" || name == "CopyDone" || name == "CopyFail":
		return
	case name == "Sync":
		m.deaf, m.unsynced = false, false
		if m.status != 'T' {
			m.fails()
		}
		m.ready()
		return
	case m.deaf || name == "Flush":
		return
	case name == "Query" || name == "FunctionCall":
		m.unsynced = false
		switch failed := m.fails(); {
		case !failed && name == "FunctionCall":
			m.says("FunctionCallResponse")
		case !failed && m.random.IntN(4) == 0:
			m.says("CopyIn")
			m.copying = 'Q'
			return
		case !failed:
			m.status = "ITEI"[m.random.IntN(4)]
			m.says("RowDescription", "DataRow", "CommandComplete")
		}
		m.ready()
		return
	}
	m.unsynced = true
	switch m.deaf = m.fails(); {
	case m.deaf:
	case name == "Execute" && m.random.IntN(4) == 0:
		m.says("CopyIn")
		m.copying = 'E'
	case name == "Execute":
		m.says([]string{"CommandComplete", "PortalSuspended", "EmptyQuery"}[m.random.IntN(3)])
	case name == "Describe":
		m.says([]string{"RowDescription", "NoData"}[m.random.IntN(2)])
	default:
		m.says(name + "Complete")
	}
}

func (m *pgModel) idle() bool {
	return m.status == 'I' && !m.deaf && !m.unsynced && m.copying == 0 && len(m.out) == 0
}

// Whatever a client asks, and whenever the answers come: a session may be parked exactly
// when its server is idle and has been heard out.
func TestPostgresModel(t *testing.T) {
	words := strings.Fields("Query:a Parse: Parse:s Bind Describe:x Execute Sync Flush Close: Close:s CopyData CopyDone FunctionCall")
	rows := strings.Fields("CopyData CopyDone CopyFail")
	parkable := 0
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 0))
		f, m := newTestPgFramer(), &pgModel{random: random, status: 'I'}
		pgHear(t, f, pgBytesOf(t, "Startup"), func() int { return 100 })
		pgPass(t, f, pgBytesOf(t, "Authentication:0 Ready:I"), func() int { return 100 })
		var log []string
		sends := false // rows, to whose end it has to come
		for step := range 60 {
			if random.IntN(2) == 0 && len(m.out) > 0 {
				word := m.out[0]
				m.out = m.out[1:]
				log = append(log, "<"+word)
				pgPass(t, f, pgMessageOf(t, word), func() int { return 100 })
			} else {
				word := words[random.IntN(len(words))]
				switch {
				case sends:
					word = rows[random.IntN(len(rows))]
				case step > 40: // towards an end
					word = "Sync"
				}
				log = append(log, ">"+word)
				pgHear(t, f, pgMessageOf(t, word), func() int { return 100 })
				m.hears(word)
				sends = m.copying != 0 || sends && word == "CopyData"
			}
			if (f.busy() == "") != m.idle() {
				t.Fatalf("seed %d: busy is %q, and the server is idle: %v, after\n%s", seed, f.busy(), m.idle(), strings.Join(log, " "))
			}
			if m.idle() {
				parkable++
			}
		}
	}
	t.Logf("it could be parked %d times", parkable)
}
