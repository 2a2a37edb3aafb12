// Command flockctl asks flockd, through its unix socket, for all that a person or a
// script wants of a flocker cluster. It decides nothing and keeps nothing: every
// subcommand is one or a few calls of internal/api and a way to show the answer.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], system()))
}
