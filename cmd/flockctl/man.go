package main

import (
	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/manual"
	"github.com/flocker-io/flocker/internal/version"
)

// manName prints the manual page, for `make man`.
const manName = "__man"

func (a *app) manCommand() *cli.Command {
	return &cli.Command{Name: manName, Hidden: true, Action: func(*cli.Context) error {
		a.printf("%s", manual.Man(a.root(), 1, version.Version))
		return nil
	}}
}
