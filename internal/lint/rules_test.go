package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// rules are checked one by one. Each returns its complaints, which say what to do.
var rules = []struct {
	name  string
	check func(*repo) []string
}{
	{"layering", layering},
	{"processes", processes},
	{"sockets", sockets},
	{"package docs", packageDocs},
	{"formatting", formatting},
	{"sleeping tests", sleepingTests},
	{"private places", privatePlaces},
	{"links", links},
	{"named tests", namedTests},
	{"stories", stories},
	{"properties", properties},
	{"labels", labels},
}

func TestRepository(t *testing.T) {
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			for _, problem := range rule.check(load(t)) {
				t.Error(problem)
			}
		})
	}
}

// processes: child processes are started only where something watches over them.
func processes(r *repo) (problems []string) {
	// flockd proxy and flockd fence are started by systemd, not by us; but a proxy starts the
	// one that takes over from it, which gets its sockets that way alone. The gate of
	// internal/warm starts nothing, it becomes another program.
	allowed := []string{"zfs", "internal/fence", "internal/warm", "cmd/flockd"}
	for _, f := range r.goFiles {
		if f.isTest() || isStory(f.pkg) || slices.Contains(allowed, f.pkg) {
			continue
		}
		complain := func(at, what string) {
			problems = append(problems, fmt.Sprintf("%s: %s: child processes run only in %s", at, what, strings.Join(allowed, ", ")))
		}
		if slices.Contains(f.imports(), "os/exec") {
			complain(f.path, "imports os/exec")
		}
		f.selectors(func(n ast.Node, pkg, name string) {
			switch pkg + "." + name {
			case "os.StartProcess", "syscall.StartProcess", "syscall.ForkExec", "syscall.Exec",
				"golang.org/x/sys/unix.Exec":
				complain(f.at(n), name)
			}
		})
	}
	return problems
}

// sockets: connections are opened and accepted only where the design says, so that
// a whole cluster can run in one test.
func sockets(r *repo) (problems []string) {
	allowed := map[string]string{
		"internal/transport": "the mTLS port",
		"proxy":              "routes",
		"plugin":             "Docker's socket",
		"internal/api":       "the control socket",
		"internal/container": "the engine's socket",
		"internal/fence":     "the fencer's socket",
		"internal/warm":      "the gate's socket",
		"internal/cluster":   "only what Config's ListenFunc and DialFunc are by default",
		"cmd/flockd":         "the metrics port and systemd's notify socket",
	}
	opens := map[string]*regexp.Regexp{
		"net":        regexp.MustCompile(`^(Listen([A-Z].*)?|Dial.*|FileConn|FileListener|FilePacketConn)$`),
		"crypto/tls": regexp.MustCompile(`^(Listen|Dial.*)$`),
		"net/http":   regexp.MustCompile(`^(ListenAndServe.*|Get|Head|Post|PostForm|DefaultClient|DefaultTransport)$`),
		"syscall":    regexp.MustCompile(`^(Socket|Socketpair)$`),
	}
	for _, f := range r.goFiles {
		if f.isTest() || isStory(f.pkg) || allowed[f.pkg] != "" {
			continue
		}
		f.selectors(func(n ast.Node, pkg, name string) {
			if opens[pkg] != nil && opens[pkg].MatchString(name) {
				problems = append(problems, fmt.Sprintf(
					"%s: %s.%s: package %s opens no sockets (list in internal/lint/rules_test.go); take a dial or listen function as a parameter",
					f.at(n), path.Base(pkg), name, f.pkg))
			}
		})
	}
	return problems
}

// packageDocs: every package says what it is for.
func packageDocs(r *repo) (problems []string) {
	doc, main, code := map[string]string{}, map[string]bool{}, map[string]bool{}
	for _, f := range r.goFiles {
		name := f.ast.Name.Name
		main[f.pkg] = main[f.pkg] || name == "main"
		code[f.pkg] = code[f.pkg] || !f.isTest()
		if f.ast.Doc != nil && (!f.isTest() || !strings.HasSuffix(name, "_test")) {
			doc[f.pkg] = f.ast.Doc.Text()
		}
	}
	for _, pkg := range r.packages() {
		want := "Package " + path.Base(pkg) + " "
		switch {
		case doc[pkg] == "":
			problems = append(problems, fmt.Sprintf("package %s has no package comment: say what it is for, what it never does and who calls it", pkg))
		case code[pkg] && !main[pkg] && !strings.HasPrefix(doc[pkg], want):
			problems = append(problems, fmt.Sprintf("the comment of package %s does not begin with %q", pkg, want))
		}
	}
	return problems
}

func formatting(r *repo) (problems []string) {
	for _, f := range r.goFiles {
		if out, err := format.Source(f.text); err != nil || !bytes.Equal(out, f.text) {
			problems = append(problems, fmt.Sprintf("%s is not formatted: run gofmt -w", f.path))
		}
	}
	return problems
}

// sleepingTests: a test waits for a condition, not for a time that is sometimes
// too short and always too long. In a synctest bubble sleeping costs nothing and is
// exact; elsewhere a test may sleep between looks, in a loop or a helper named for
// it, and where nothing could be waited for, if the same line says so.
func sleepingTests(r *repo) (problems []string) {
	waits := regexp.MustCompile(`(?i)wait|until|retry|eventually|poll`)
	for _, f := range r.goFiles {
		bubble := slices.Contains(f.imports(), "testing/synctest") || isWorld(f.pkg)
		if !f.isTest() || bubble {
			continue
		}
		reasons := map[int]bool{} // lines with a comment
		for _, group := range f.ast.Comments {
			reasons[f.fset.Position(group.Pos()).Line] = true
		}
		f.selectors(func(n ast.Node, pkg, name string) {
			if pkg != "time" || name != "Sleep" || reasons[f.fset.Position(n.Pos()).Line] {
				return
			}
			fn, looped := around(f.ast, n)
			if looped || waits.MatchString(fn) {
				return
			}
			problems = append(problems, fmt.Sprintf(
				"%s: a test sleeps: wait for the condition, or say in a comment on this line why there is none", f.at(n)))
		})
	}
	return problems
}

// around is the declared function around a node, and whether a loop is.
func around(file *ast.File, n ast.Node) (fn string, looped bool) {
	ast.Inspect(file, func(outer ast.Node) bool {
		if outer == nil || n.Pos() < outer.Pos() || outer.End() <= n.Pos() {
			return false
		}
		switch outer := outer.(type) {
		case *ast.FuncDecl:
			fn = outer.Name.Name
		case *ast.ForStmt, *ast.RangeStmt:
			looped = true
		}
		return true
	})
	return fn, looped
}

// privatePlaces: nothing in the repository names a registry, which no test can
// reach, or a place on a developer's own machine. The patterns are put together
// here so that this file holds none of them.
func privatePlaces(r *repo) (problems []string) {
	dot, slash := `\.`, "/"
	var hosts []string
	for _, h := range [][]string{
		{"ghcr", "io"}, {"quay", "io"}, {"gcr", "io"}, {"registry", "k8s", "io"}, {"mcr", "microsoft", "com"},
		{"hub", "docker", "com"}, {"registry-1", "docker", "io"}, {"index", "docker", "io"}, {"auth", "docker", "io"},
		{"public", "ecr", "aws"}, {"registry", "npmjs", "org"}, {"pypi", "org"}, {"static", "crates", "io"},
		{"proxy", "golang", "org"}, {"sum", "golang", "org"},
	} {
		hosts = append(hosts, strings.Join(h, dot))
	}
	// Debian's package of the engine is called like a registry; as a registry it is
	// followed by a path.
	hosts = append(hosts, "docker"+dot+"io"+slash)
	for _, dir := range []string{"main", "shared", dot + "library"} {
		hosts = append(hosts, slash+"work"+slash+dir)
	}
	pattern := regexp.MustCompile(`(^|[^\w.-])(` + strings.Join(hosts, "|") + `)`)
	for _, name := range sorted(r.texts) {
		for i, line := range strings.Split(string(r.texts[name]), "\n") {
			if m := pattern.FindStringSubmatch(line); m != nil {
				problems = append(problems, fmt.Sprintf("%s:%d names %s, which nobody else has or no test can reach", name, i+1, m[2]))
			}
		}
	}
	return problems
}

var link = regexp.MustCompile(`\]\(<?([^)\s>]+)>?[^)]*\)`)

// links: what a document links to in this repository is there, with its heading.
func links(r *repo) (problems []string) {
	dirs := map[string]bool{".": true}
	for name := range r.texts {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	for _, name := range sorted(r.texts) {
		if path.Ext(name) != ".md" {
			continue
		}
		text := fenced.ReplaceAllString(string(r.texts[name]), "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, ":") {
				continue // somewhere else
			}
			to := path.Join(path.Dir(name), target)
			switch {
			case target == "":
				to = name
			case strings.HasPrefix(target, "/"):
				to = path.Clean(target[1:])
			}
			_, ok := r.texts[to]
			switch {
			case !ok && !dirs[to]:
				problems = append(problems, fmt.Sprintf("%s links to %s, which is not there", name, m[1]))
			case ok && heading != "" && path.Ext(to) == ".md" && !slices.Contains(headings(string(r.texts[to])), heading):
				problems = append(problems, fmt.Sprintf("%s links to %s, and %s has no such heading", name, m[1], to))
			}
		}
	}
	return problems
}

// headings of a document, as links name them.
func headings(text string) (out []string) {
	for _, m := range heading.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
		out = append(out, strings.Map(func(c rune) rune {
			switch {
			case unicode.IsLetter(c), unicode.IsDigit(c), c == '-', c == '_':
				return unicode.ToLower(c)
			case c == ' ':
				return '-'
			}
			return -1
		}, strings.TrimSpace(m[1])))
	}
	return out
}

var (
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	block   = regexp.MustCompile("(?ms)^```.*?^```")
)

// labels: each label of containers that flocker knows is on the page for those who use Docker.
func labels(r *repo) (problems []string) {
	page := string(r.texts["docs/DOCKER.md"])
	for _, f := range r.goFiles {
		if f.isTest() {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for i, name := range spec.Names {
				if i >= len(spec.Values) || !strings.HasPrefix(strings.ToLower(name.Name), "label") {
					continue
				}
				lit, ok := spec.Values[i].(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				label, err := strconv.Unquote(lit.Value)
				if err != nil || !strings.HasPrefix(label, "flocker.") {
					continue
				}
				if !regexp.MustCompile("`" + regexp.QuoteMeta(label) + "([^a-z.-]|$)").MatchString(page) {
					problems = append(problems, fmt.Sprintf("%s: label %s is not in docs/DOCKER.md: say there what it does", f.at(n), label))
				}
			}
			return true
		})
	}
	return problems
}

// namedTests: a page that says by which test something is shown names one that is there.
func namedTests(r *repo) (problems []string) {
	known := map[string]bool{}
	for _, f := range r.goFiles {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				known[fn.Name.Name] = true
			}
		}
	}
	for _, name := range sorted(r.texts) {
		if path.Ext(name) != ".md" {
			continue
		}
		for _, m := range namedTest.FindAllStringSubmatch(string(r.texts[name]), -1) {
			if !known[m[1]] {
				problems = append(problems, fmt.Sprintf("%s names %s, and no test is called so", name, m[1]))
			}
		}
		// Scripts of whole clusters are told by the number of machines at their end.
		for _, m := range namedScript.FindAllStringSubmatch(string(r.texts[name]), -1) {
			if _, ok := r.texts["internal/scenario/testdata/"+m[1]+".txt"]; !ok {
				problems = append(problems, fmt.Sprintf("%s names the script %s, which is not in internal/scenario/testdata", name, m[1]))
			}
		}
	}
	return problems
}

// stories: each one is in a table of docs/TESTING.md that says what it shows. The results, which list them as
// well, do not count.
func stories(r *repo) (problems []string) {
	_, tables, _ := strings.Cut(string(r.texts["docs/TESTING.md"]), "\n## The core stories\n")
	tables, _, _ = strings.Cut(tables, "\n## The last result")
	told := map[string]bool{}
	for line := range strings.Lines(tables) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range namedTest.FindAllStringSubmatch(cells[1], -1) {
				told[m[1]] = true
			}
		}
	}
	for _, f := range r.goFiles {
		if f.pkg != "test/stories" || !f.isTest() {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" && !told[fn.Name.Name] {
				problems = append(problems, fmt.Sprintf("%s: no table of stories in docs/TESTING.md has %s: say there what it shows", f.at(fn), fn.Name.Name))
			}
		}
	}
	return problems
}

// properties: zfs tells only of those user properties that it is asked for by name, so one
// that the lists of package zfs lack is never read, whatever wrote it.
func properties(r *repo) (problems []string) {
	written := map[string]string{
		"flocker:canary": "what counts is that it can be written; nobody reads it",
	}
	asked := map[string]bool{}
	lists := map[ast.Node]bool{}
	for _, f := range r.goFiles {
		if f.pkg != "zfs" || f.isTest() {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 || v.Names[0].Name != "UserProperties" && v.Names[0].Name != "SnapshotProperties" {
				return true
			}
			lists[n] = true
			f.strings(v.Values[0], func(_ ast.Node, s string) { asked[s] = true })
			return false
		})
	}
	for _, f := range r.goFiles {
		if f.isTest() || isStory(f.pkg) || isFake(f.pkg) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if lists[n] {
				return false
			}
			if lit, ok := n.(*ast.BasicLit); ok {
				f.strings(lit, func(n ast.Node, s string) {
					if property.MatchString(s) && !asked[s] && written[s] == "" {
						problems = append(problems, fmt.Sprintf(
							"%s: zfs is not asked for %s: add it to UserProperties or SnapshotProperties of package zfs, or say in internal/lint/rules_test.go why nobody reads it",
							f.at(n), s))
					}
				})
			}
			return true
		})
	}
	return problems
}

var property = regexp.MustCompile(`^flocker:[a-z0-9:._-]+$`)

var (
	namedTest   = regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9]*)")
	namedScript = regexp.MustCompile(`[^*]\*([a-z-]+[1-9])\*[^*]`)
)

// fenced are code blocks and code in a line, where brackets are no links.
var fenced = regexp.MustCompile("(?ms)^```.*?^```|`[^`\n]*`")

func sorted(m map[string][]byte) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
