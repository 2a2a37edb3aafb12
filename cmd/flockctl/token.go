package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
)

func (a *app) tokenCommand() *cli.Command {
	return &cli.Command{
		Name:    "token",
		Aliases: []string{"tokens"},
		Usage:   "make, list and revoke join tokens",
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make a token and print the line that joins a node with it",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "ttl", Usage: "the token is good for this `TIME`", DefaultText: "24h"},
					&cli.IntFlag{Name: "max-uses", Usage: "no more than `N` nodes may join with it", DefaultText: "any number"},
					&cli.StringFlag{Name: "note", Usage: "`TEXT` to know it by"},
				},
				Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
					req := api.TokenRequest{TTL: c.Duration("ttl"), MaxUses: c.Int("max-uses"), Note: c.String("note")}
					switch {
					case c.IsSet("ttl") && req.TTL <= 0:
						return usage(c, "--ttl has to be more than nothing")
					case c.IsSet("max-uses") && req.MaxUses <= 0:
						return usage(c, "--max-uses has to be at least 1")
					}
					t, err := a.client.CreateToken(ctx, req)
					switch {
					case err != nil:
						return err
					case a.asJSON:
						return a.printJSON(t)
					case a.quiet:
						a.printf("%s\n", t.Text)
					default:
						a.printf("Run this on each node to add (good for %s; the token is shown only now):\n\n    %s\n", a.in(t.Expires), t.JoinCommand)
					}
					return nil
				}),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list the tokens, without their secrets",
				Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
					ts, err := a.client.Tokens(ctx)
					if err != nil {
						return err
					}
					return a.printTokens(ts)
				}),
			},
			{
				Name: "revoke", Aliases: []string{"rm"}, Usage: "make tokens worthless", ArgsUsage: "ID...",
				Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
					return a.each(c.Args().Slice(), func(id string) (string, error) { return id, a.client.RevokeToken(ctx, id) })
				}),
			},
		},
	}
}

func (a *app) printTokens(ts []api.Token) error {
	if a.asJSON {
		return a.printJSON(ts)
	}
	if a.quiet {
		for _, t := range ts {
			a.printf("%s\n", t.ID)
		}
		return nil
	}
	tab := newTable("ID", "STATE", "USES", "CREATED", "EXPIRES IN", "NOTE")
	for _, t := range ts {
		state, expires := "valid", a.in(t.Expires)
		uses := fmt.Sprint(t.Uses)
		if t.MaxUses > 0 {
			uses = fmt.Sprintf("%d of %d", t.Uses, t.MaxUses)
		}
		switch {
		case !t.Expires.After(a.now()):
			state, expires = "expired", ""
		case t.MaxUses > 0 && t.Uses >= t.MaxUses:
			state = "used up"
		}
		tab.add(t.ID, state, uses, a.ago(t.Created)+" ago", expires, t.Note)
	}
	return tab.print(a.stdout)
}

// each does something to several things, prints what do returns for each, goes on
// after a failure and fails at the end with the first one.
func (a *app) each(refs []string, do func(ref string) (string, error)) error {
	done := []string{}
	var failed error
	for _, ref := range refs {
		name, err := do(ref)
		if err != nil {
			a.printError(err)
			if failed == nil {
				failed = told{err}
			}
			continue
		}
		done = append(done, name)
		if !a.asJSON {
			a.printf("%s\n", name)
		}
	}
	if a.asJSON {
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	return failed
}
