package main

import (
	"bufio"
	"context"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// setupFlags are what init and join have in common.
func setupFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "`NAME` of this node; the host name unless given"},
		&cli.StringFlag{Name: "zone", Usage: "failure domain `ZONE` that this node stands in", DefaultText: string(volume.DefaultZone)},
		&cli.StringFlag{Name: "advertise", Usage: "`ADDRESS` (host or host:port) that the other nodes dial"},
		&cli.StringFlag{Name: "pool", Usage: "keep volumes in the existing zpool `POOL`"},
		&cli.StringFlag{Name: "pool-file", Usage: "make a zpool in a file of this `SIZE`, such as 20G"},
		&cli.StringFlag{Name: "pool-path", Usage: "`PATH` of that file"},
		&cli.BoolFlag{Name: "if-new", Usage: "succeed and do nothing if this node is in a cluster already"},
	}
}

// setup reads setupFlags.
func setup(c *cli.Context) (api.NodeSetup, error) {
	s := api.NodeSetup{
		Name: c.String("name"), Zone: c.String("zone"), Advertise: c.String("advertise"),
		Pool: c.String("pool"), PoolFilePath: c.String("pool-path"), IfNew: c.Bool("if-new"),
	}
	switch {
	case c.IsSet("pool") && c.IsSet("pool-file"):
		return s, usage(c, "--pool and --pool-file cannot be combined")
	case c.IsSet("pool-path") && !c.IsSet("pool-file"):
		return s, usage(c, "--pool-path needs --pool-file SIZE")
	}
	if c.IsSet("pool-file") {
		n, err := volume.ParseSize(c.String("pool-file"))
		if err != nil {
			return s, usage(c, "--pool-file: %v", err)
		}
		if n == 0 {
			return s, usage(c, "--pool-file: a pool needs some room, such as 20G")
		}
		s.PoolFileSize = n
	}
	return s, nil
}

func (a *app) initCommand() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "make a new cluster of this node",
		Flags: setupFlags(),
		Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
			s, err := setup(c)
			if err != nil {
				return err
			}
			r, err := a.client.Init(ctx, api.InitRequest{NodeSetup: s})
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(r)
			case r.Existed:
				a.alreadyMember(r.ClusterID)
				return nil
			case a.quiet:
				a.printf("%s\n", r.Token)
				return nil
			}
			a.printf("Made cluster %s; this node is %s.\n\n", r.ClusterID, r.Node)
			a.printf("Run this on each node to add (the token is good for %s; 'flockctl token create' makes another):\n\n    %s\n",
				a.in(r.TokenExpires), r.JoinCommand)
			return nil
		}),
	}
}

func (a *app) alreadyMember(cluster string) {
	if !a.quiet {
		a.printf("This node is in cluster %s already; nothing was changed.\n", cluster)
	}
}

func (a *app) joinCommand() *cli.Command {
	return &cli.Command{
		Name:      "join",
		Usage:     "make this node a member of a cluster",
		ArgsUsage: "TOKEN",
		Description: "'flockctl init' and 'flockctl token create' print the whole line to type. A TOKEN of \"-\" is read\n" +
			"from standard input, where other users of the machine do not see it.",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "peer", Usage: "`ADDRESS` of a member; several, with commas or repeated, are tried in turn"},
			&cli.BoolFlag{Name: "witness", Usage: "join without a pool: vote, but hold no data"},
			&cli.BoolFlag{Name: "wait", Usage: "return only when this node is ready for Docker"},
		}, setupFlags()...),
		Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
			req, err := a.joinRequest(c)
			if err != nil {
				return err
			}
			r, err := a.client.Join(ctx, req)
			if err != nil {
				return err
			}
			if c.Bool("wait") {
				if err := a.waitReady(ctx); err != nil {
					return err
				}
			}
			switch {
			case a.asJSON:
				return a.printJSON(r)
			case r.Existed:
				a.alreadyMember(r.ClusterID)
			case a.quiet:
				a.printf("%s\n", r.Node.ID)
			default:
				a.printf("Joined cluster %s; this node is %s.\n", r.ClusterID, r.Node)
			}
			return nil
		}),
	}
}

func (a *app) joinRequest(c *cli.Context) (api.JoinRequest, error) {
	s, err := setup(c)
	if err != nil {
		return api.JoinRequest{}, err
	}
	req := api.JoinRequest{NodeSetup: s, Token: c.Args().First(), Witness: c.Bool("witness")}
	for _, p := range c.StringSlice("peer") {
		for _, addr := range strings.Split(p, ",") {
			if addr = strings.TrimSpace(addr); addr != "" {
				req.Peers = append(req.Peers, addr)
			}
		}
	}
	if len(req.Peers) == 0 {
		return req, usage(c, "--peer is missing: give the address of a member")
	}
	if req.Witness && (s.Pool != "" || s.PoolFileSize > 0) {
		return req, usage(c, "--witness and a pool cannot be combined")
	}
	if req.Token == "-" {
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		if req.Token = strings.TrimSpace(line); req.Token == "" {
			return req, usage(c, "no token on standard input (%v)", err)
		}
	}
	return req, nil
}

// waitReady waits until this node has caught up with the cluster.
func (a *app) waitReady(ctx context.Context) error {
	const pause = 200 * time.Millisecond
	for {
		st, err := a.client.Status(ctx)
		if err == nil && st.Ready && st.Quorum {
			return nil
		}
		// flockd may start anew while it becomes a member.
		if err != nil && volume.CodeOf(err) != volume.CodeUnavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return volume.Errorf(volume.CodeTimeout, "this node has joined but is not ready yet").WithHint("flockctl status tells more")
		case <-time.After(pause):
		}
	}
}
