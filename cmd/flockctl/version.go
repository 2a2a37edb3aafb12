package main

import (
	"context"
	"errors"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/version"
)

func ownVersion() api.VersionInfo {
	return api.VersionInfo{Version: version.Version, Commit: version.Commit, GoVersion: runtime.Version(), API: api.APIVersion}
}

func (a *app) printOwnVersion() error {
	a.printf("flockctl %s\n", version.Version)
	return nil
}

func (a *app) versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "show the versions of flockctl and of this node's flockd",
		Description: "With --quiet only flockctl's own, without asking flockd.",
		Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
			if a.quiet {
				a.printf("%s\n", version.Version)
				return nil
			}
			server, err := a.client.Version(ctx)
			if a.asJSON {
				out := struct {
					Client api.VersionInfo  `json:"client"`
					Server *api.VersionInfo `json:"server"`
				}{Client: ownVersion()}
				if err == nil {
					out.Server = &server
				}
				return errors.Join(a.printJSON(out), err)
			}
			var f facts
			f.add("flockctl", "%s", oneLine(ownVersion()))
			if err == nil {
				f.add("flockd", "%s", oneLine(server))
			}
			f.print(a.stdout)
			return err
		}),
	}
}

func oneLine(v api.VersionInfo) string {
	words := []string{v.Version}
	for _, w := range []struct{ name, value string }{
		{"commit", v.Commit}, {"API", v.API}, {"", v.GoVersion}, {"ZFS", v.ZFS}, {"kernel", v.Kernel}, {"Docker", v.Docker},
	} {
		if w.value != "" {
			words = append(words, strings.TrimSpace(w.name+" "+w.value))
		}
	}
	return strings.Join(words, ", ")
}
