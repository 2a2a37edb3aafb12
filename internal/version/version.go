// Package version knows which build of flocker this is. The Makefile sets the two
// variables when it links; nothing else writes them. Nodes report the version and
// both programs print it.
package version

import "runtime"

// Version is what git describe said of the tree; Commit the full hash.
var (
	Version = "dev"
	Commit  = ""
)

// String is one line for people.
func String() string {
	s := Version
	if Commit != "" {
		s += " (" + Commit + ")"
	}
	return s + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
