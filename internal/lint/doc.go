// Package lint holds the rules of this repository that a compiler does not check,
// as tests: which package may import which, where child processes and sockets may
// be, what every package and document must have. There is nothing to import; run
// it with go test ./internal/lint. A rule that stands in the way of something
// reasonable is changed here, with the reason beside it.
package lint
