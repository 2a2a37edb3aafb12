package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/fence"
)

// mayRunCommand is asked by the package before it stops another version in favour of this one.
func mayRunCommand() *cli.Command {
	return &cli.Command{
		Name: "may-run", Usage: "say whether this version can go on from what another one has written on this machine",
		Description: "For changes of version. Its exit code is 1 when a later version has written what this one cannot read:\n" +
			"flockd would stop, and all writers with it. It changes nothing, and flockd may run meanwhile.",
		Action: func(c *cli.Context) error {
			cfg, err := config(c)
			if err != nil {
				return err
			}
			return errors.Join(cluster.Readable(cluster.DirDisk(cfg.StateDir)), fence.Readable(cfg.RunDir))
		},
	}
}
