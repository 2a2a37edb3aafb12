package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	flockd "github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/internal/manual"
	"github.com/flocker-io/flocker/internal/version"
)

// configFile is read when it exists; flockd runs without any.
const configFile = "/etc/flocker/flockd.yml"

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	return commandLine(ctx, out, errOut).RunContext(ctx, args)
}

// commandLine is all of it.
func commandLine(ctx context.Context, out, errOut io.Writer) *cli.App {
	flags := []cli.Flag{&cli.StringFlag{
		Name: "config", Usage: "configuration `FILE`; without the flag " + configFile + " is read if it is there", EnvVars: []string{"FLOCKD_CONFIG"},
	}}
	for _, s := range flockd.Settings() {
		flags = append(flags, &cli.StringFlag{Name: s.Flag(), Usage: s.Usage, EnvVars: []string{s.Env()}, DefaultText: s.Def})
	}
	app := &cli.App{
		Name: "flockd", HelpName: "flockd", Usage: "flocker's daemon: one per node",
		Description: "Without a command it runs the node. Flags win over environment, environment over the file. They stand before\n" +
			"the command, which takes no arguments but its own flags. What fails ends with exit code 1 and one line that\n" +
			"says why; nothing was done if the command line is wrong.",
		Version: version.String(), Writer: out, ErrWriter: errOut, HideHelpCommand: true, Flags: flags,
		Action: func(c *cli.Context) error {
			cfg, err := config(c)
			if err != nil {
				return err
			}
			return serve(ctx, cfg, errOut)
		},
		Commands: []*cli.Command{fenceCommand(out, errOut), proxyCommand(out, errOut), recoverCommand(out, errOut), mayRunCommand(), {
			Name: "config", Usage: "check or show the configuration",
			Subcommands: []*cli.Command{
				{Name: "check", Usage: "say whether the configuration is valid", Action: func(c *cli.Context) error {
					_, err := config(c)
					return err
				}},
				{Name: "show", Usage: "print the effective configuration as YAML", Action: func(c *cli.Context) error {
					cfg, err := config(c)
					if err != nil {
						return err
					}
					return yaml.NewEncoder(out).Encode(cfg)
				}},
			},
		}},
	}
	app.Commands = append(app.Commands, &cli.Command{
		Name: "__man", Hidden: true, // for `make man`
		Action: func(*cli.Context) error {
			_, err := io.WriteString(out, manual.Man(app, 8, version.Version))
			return err
		},
	})
	strict(app)
	return app
}

// config is what file, environment and flags say together.
func config(c *cli.Context) (flockd.Config, error) {
	path := c.String("config")
	if why := badValue(path, "FLOCKD_CONFIG", "`FILE`"); c.IsSet("config") && why != "" {
		return flockd.Config{}, usage(c, "--config %s", why)
	}
	optional := path == "" || path == configFile // the unit names the latter
	if path == "" {
		path = configFile
	}
	cfg, err := flockd.ReadConfig(path, optional)
	if err != nil {
		return cfg, err
	}
	for _, s := range flockd.Settings() {
		if !c.IsSet(s.Flag()) {
			continue
		}
		value := c.String(s.Flag())
		if why := badValue(value, s.Env(), s.Usage); why != "" {
			return cfg, usage(c, "--%s %s", s.Flag(), why)
		}
		*s.Field(&cfg) = value
	}
	cfg = cfg.WithDefaults()
	return cfg, cfg.Validate()
}

// serve runs the node until it is told to stop.
func serve(ctx context.Context, cfg flockd.Config, errOut io.Writer) error {
	log := cfg.Logger(errOut)
	slog.SetDefault(log) // for libraries that know no other
	log.Info("flockd starts", "version", version.String())

	parts, err := flockd.Real(cfg, log)
	if err != nil {
		return err
	}
	parts.Logs = journal
	parts.Started = func() { notify(log, daemon.SdNotifyReady) }
	d := flockd.New(parts)

	stop, err := serveHTTP(cfg, d, log)
	if err != nil {
		return err
	}
	defer stop()
	err = d.Run(ctx)
	notify(log, daemon.SdNotifyStopping)
	log.Info("flockd has stopped")
	return err
}

// notify tells systemd, when it has started us.
func notify(log *slog.Logger, what string) {
	if _, err := daemon.SdNotify(false, what); err != nil {
		log.Warn("systemd could not be told", "what", what, "err", err)
	}
}

// serveHTTP serves metrics and health in clear, on loopback unless told otherwise.
func serveHTTP(cfg flockd.Config, d *flockd.Daemon, log *slog.Logger) (stop func(), err error) {
	if cfg.HTTPListen == "off" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", cfg.HTTPListen)
	if err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	srv := &http.Server{Handler: d.HTTP(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", "err", err)
		}
	}()
	return func() { srv.Close(); <-done }, nil
}
