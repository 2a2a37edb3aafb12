package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/doctor"
)

func (a *app) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "look at all nodes and say what is wrong, why it matters and what to do",
		Description: "Works without quorum; a node that does not answer is a finding. It changes nothing.\n\n" +
			"The exit code is 1 if there is a problem, 0 if there are warnings at most. With --quiet it prints\n" +
			"only problems and warnings, one on a line.",
		Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
			d, err := a.client.Doctor(ctx)
			if err != nil {
				return err
			}
			if a.asJSON {
				err = a.printJSON(d)
			} else {
				a.printDoctor(d)
			}
			if err == nil && doctor.Worst(d.Findings) == doctor.Problem {
				err = told{errors.New("there are problems")}
			}
			return err
		}),
	}
}

func (a *app) printDoctor(d api.Doctor) {
	n := map[doctor.Severity]int{}
	for _, f := range d.Findings {
		n[f.Severity]++
		where := f.Check
		if f.Node != "" {
			where = f.Node + ", " + f.Check
		}
		switch {
		case a.quiet && f.Severity == doctor.OK:
		case a.quiet:
			a.printf("%s: %s: %s\n", f.Severity, where, f.What)
		default:
			a.printf("%-8s %s: %s\n", f.Severity, where, f.What)
			for _, more := range []struct{ head, text string }{{"why", f.Why}, {"fix", f.Fix}} {
				if more.text != "" && f.Severity != doctor.OK {
					a.printf("%-8s   %s: %s\n", "", more.head, more.text)
				}
			}
		}
	}
	if a.quiet {
		return
	}
	var words []string
	for _, s := range []doctor.Severity{doctor.Problem, doctor.Warning} {
		if n[s] > 0 {
			words = append(words, plural(n[s], string(s)))
		}
	}
	if len(words) == 0 {
		a.printf("\nNothing is wrong.\n")
		return
	}
	a.printf("\n%s\n", fmt.Sprintf("%s; well is what %s looked at.", strings.Join(words, ", "), plural(n[doctor.OK], "other check")))
}
