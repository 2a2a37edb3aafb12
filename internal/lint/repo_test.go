package lint

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// repo is the text of this repository: what is checked in, or could be.
type repo struct {
	module  string
	texts   map[string][]byte // every text file by slash path
	goFiles []*goFile         // those of our module, in order of path
	fset    *token.FileSet
}

// goFile is one parsed file.
type goFile struct {
	path string // slash path from the root
	pkg  string // its directory
	text []byte
	ast  *ast.File
	fset *token.FileSet
}

func (f *goFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

func (f *goFile) imports() (out []string) {
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// at is where a node of the file stands, for messages.
func (f *goFile) at(n ast.Node) string {
	return f.path + ":" + strconv.Itoa(f.fset.Position(n.Pos()).Line)
}

// selectors calls see with every mention of a name of an imported package: its
// import path and the name.
func (f *goFile) selectors(see func(n ast.Node, pkg, name string)) {
	local := map[string]string{}
	for _, spec := range f.ast.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		local[name] = p
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && local[x.Name] != "" {
				see(n, local[x.Name], sel.Sel.Name)
			}
		}
		return true
	})
}

// strings calls see with every text that stands below n.
func (f *goFile) strings(n ast.Node, see func(n ast.Node, s string)) {
	ast.Inspect(n, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				see(n, s)
			}
		}
		return true
	})
}

// packages are the directories with Go files, sorted.
func (r *repo) packages() []string {
	var out []string
	for _, f := range r.goFiles {
		out = append(out, f.pkg)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (r *repo) add(name string, text []byte) error {
	if bytes.IndexByte(text, 0) >= 0 {
		return nil // not text
	}
	r.texts[name] = text
	// Files of testdata are whatever a test wants; tools is a module of its own.
	if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") || strings.HasPrefix(name, "tools/") {
		return nil
	}
	parsed, err := parser.ParseFile(r.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	r.goFiles = append(r.goFiles, &goFile{path: name, pkg: path.Dir(name), text: text, ast: parsed, fset: r.fset})
	return nil
}

func newRepo(module string) *repo {
	return &repo{module: module, texts: map[string][]byte{}, fset: token.NewFileSet()}
}

// theRepo reads the repository once.
var theRepo = sync.OnceValues(func() (*repo, error) {
	root := filepath.Join("..", "..")
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(mod), "\n")
	r := newRepo(strings.TrimSpace(strings.TrimPrefix(line, "module ")))
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == ".git" || rel == "bin" || rel == "dist" || d.Name() == ".vagrant" {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || rel == ".git" { // a worktree's is a file
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return r.add(rel, text)
	})
	return r, err
})

func load(t *testing.T) *repo {
	t.Helper()
	r, err := theRepo()
	if err != nil {
		t.Fatal(err)
	}
	return r
}
