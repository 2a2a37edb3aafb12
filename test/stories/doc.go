// Package stories tests flocker as a user meets it: real machines, OpenZFS, Docker
// and PostgreSQL, real power cuts. scripts/test runs it; without the lab all of it
// is skipped. Every story begins with clean machines, compares states (rows, sums,
// checksums) rather than counting errors, and ends with nothing left over.
//
// TestCore... are the stories of `make test`; `make test-full` runs all.
package stories
