package lint

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// layers is the import table of DESIGN: each package of ours and what of ours its
// code (not its tests) may import. A package that is not here fails the test:
// adding one means deciding where it stands.
var layers = map[string][]string{
	// 0: nouns
	"internal/volume":  {},
	"internal/version": {},

	// 1: mechanisms that know only nouns, or nothing of ours at all
	"internal/lease":     {"internal/volume"},
	"zfs":                {},
	"proxy":              {},
	"internal/state":     {"internal/volume", "internal/lease"},
	"internal/transport": {"internal/volume"},
	"internal/browse":    {"internal/volume"},
	"internal/backup":    {"internal/volume"},
	"internal/doctor":    {"internal/volume"},
	"internal/warm":      {"internal/mounts"}, // its test looks there
	"internal/manual":    {},
	"internal/terminal":  {},
	"internal/together":  {},
	"internal/mounts":    {},                                                      // its own, because the fencer is to be light: it needs nothing of internal/container
	"internal/container": {"internal/volume", "internal/mounts", "internal/warm"}, // mounts: its test with a real engine looks there

	// 2: decisions and engines
	"internal/fence":     {"internal/volume", "internal/lease", "internal/mounts"},
	"internal/placement": {"internal/volume", "internal/state"},
	"replicate":          {"internal/volume", "zfs"},
	"migrate":            {"internal/volume"},
	"plugin":             {"internal/volume"},
	"internal/api":       {"internal/volume", "internal/lease", "internal/browse", "internal/doctor"},

	// 3: one node's share in the cluster
	"internal/cluster": {"internal/volume", "internal/lease", "internal/state", "internal/transport"},
	"internal/agent":   {"internal/volume", "internal/state", "internal/together", "zfs", "replicate", "migrate"},

	// 4: the wiring. Only it sees all, and only programs and whole-cluster tests see it.
	"internal/daemon": {everything},

	// 5: programs. flockd makes the daemon's parts from the real machine, so it also
	// names the packages of those parts; both print their version.
	"cmd/flockd": {
		"internal/daemon", "internal/fence", "internal/manual", "internal/terminal", "proxy", "internal/cluster", "internal/version", "internal/volume",
		"internal/container", "internal/transport", "internal/warm", "plugin", "zfs",
		"internal/state", // what `flockd recover` prints of it
		"zfs/zfsfake",    // the trial mode: a node without a pool to try things on
	},
	"cmd/flockctl": {"internal/api", "internal/backup", "internal/browse", "internal/doctor", "internal/manual", "internal/terminal", "internal/volume", "internal/version"},

	// Fakes and suites stand beside what they stand in for.
	"zfs/zfsfake":                      {"zfs"},
	"zfs/zfstest":                      {"zfs"},
	"internal/transport/memnet":        {},
	"internal/container/containerfake": {"internal/container", "internal/volume"},
	"internal/api/apitest":             {"internal/api", "internal/browse", "internal/doctor", "internal/volume"},

	// Tests of whole clusters, and these rules.
	"internal/scenario": {everything, "internal/daemon"},
	"internal/sim":      {"internal/volume", "internal/lease", "internal/state", "internal/placement"},
	"internal/lint":     {},
	"scripts/packaging": {},
}

// everything stands for all packages but those that only programs and tests of
// whole clusters may see.
const everything = "*"

var onlyAtTheTop = []string{"internal/daemon", "internal/scenario", "internal/lint", "cmd/flockd", "cmd/flockctl"}

// Everything below test is stories on real machines: they may use what they need.
func isStory(pkg string) bool { return pkg == "test" || strings.HasPrefix(pkg, "test/") }

// isFake says that a package exists for tests: a fake, a suite, an in-memory world.
func isFake(pkg string) bool {
	base := path.Base(pkg)
	return strings.HasSuffix(base, "fake") || strings.HasSuffix(base, "test") || base == "memnet"
}

// isWorld says that a package is made of fakes: whole clusters in a bubble.
func isWorld(pkg string) bool { return pkg == "internal/scenario" }

func mayImport(from, to string) bool {
	allowed := layers[from]
	return slices.Contains(allowed, to) ||
		slices.Contains(allowed, everything) && !slices.Contains(onlyAtTheTop, to) && (!isFake(to) || isWorld(from))
}

// layering checks every import of one of our packages by another. A test may
// import what its package may, the package itself, fakes with what those show of
// their originals, and test/firstseed.
func layering(r *repo) (problems []string) {
	for _, pkg := range r.packages() {
		if _, ok := layers[pkg]; !ok && !isStory(pkg) {
			problems = append(problems, fmt.Sprintf(
				"package %s is not in the table of internal/lint/layers_test.go: say there what it may import", pkg))
		}
	}
	for _, f := range r.goFiles {
		if isStory(f.pkg) || layers[f.pkg] == nil {
			continue
		}
		for _, imp := range f.imports() {
			to, ours := strings.CutPrefix(imp, r.module+"/")
			if !ours || mayImport(f.pkg, to) {
				continue
			}
			if f.isTest() && (to == f.pkg || isFake(to) || to == "test/firstseed" || slices.Contains(layers[f.pkg], everything) || seenThroughFake(f, r.module, to)) {
				continue
			}
			problems = append(problems, fmt.Sprintf(
				"%s: package %s may not import %s (table in internal/lint/layers_test.go); declare the few methods it needs as an interface, and let internal/daemon wire them",
				f.path, f.pkg, to))
		}
	}
	return problems
}

// seenThroughFake says that the file imports a fake whose own interface speaks of
// package to.
func seenThroughFake(f *goFile, module, to string) bool {
	for _, imp := range f.imports() {
		if fake, ours := strings.CutPrefix(imp, module+"/"); ours && isFake(fake) && slices.Contains(layers[fake], to) {
			return true
		}
	}
	return false
}
