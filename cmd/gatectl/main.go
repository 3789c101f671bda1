// Command gatectl steers running gates: it lists them, publishes ports, and
// runs programs inside. There is a file for each command.
//
// Standard output carries answers alone. What goes wrong is one line on standard
// error, and the exit code: 1 for a failure, 2 for wrong usage. The exit code of
// exec is that of its program.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/internal/flagnames"
	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/persona"
	"github.com/gatekit/gatekit/internal/version"
)

// Exit codes.
const (
	codeFailure = 1
	codeUsage   = 2
)

// errUsage marks wrong usage.
var errUsage = errors.New("wrong usage")

// exitCode is the error of a command that has ended with a code of its own and
// has nothing more to say.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func main() {
	switch os.Args[0] {
	case insideName:
		os.Exit(inside(os.Args[1:], os.Stderr))
	case witnessName:
		os.Exit(beWitness())
	}
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	p := persona.Of(args[0])
	// What the caller has open is not for programs that are run inside.
	err := linux.CloseOnExecFrom(3)
	if err == nil {
		err = newApp(p, stdout).Run(args)
	}
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	// That it is wrong usage shows in the exit code.
	line = flagnames.Spell(persona.Gatekit.Control, strings.ReplaceAll(line, errUsage.Error()+": ", ""))
	fmt.Fprintln(stderr, p.Control+":", line)
	if errors.Is(err, errUsage) {
		return codeUsage
	}
	return codeFailure
}

// personaKey is where the command line's metadata has its persona.
const personaKey = "persona"

func personaOf(c *cli.Context) persona.Persona { return c.App.Metadata[personaKey].(persona.Persona) }

// newApp makes the command line of a persona.
func newApp(p persona.Persona, stdout io.Writer) *cli.App {
	commands := []*cli.Command{
		listCommand(), infoCommand(), listPortsCommand(), addPortsCommand(p), removePortsCommand(), connectionsCommand(), policyCommand(), execCommand(), netnsCommand(),
	}
	for _, c := range commands {
		// "gatectl exec help" runs help.
		for _, c := range append(c.Subcommands, c) {
			c.HideHelpCommand = true
			c.OnUsageError = usageError
			c.UsageText = strings.ReplaceAll(c.UsageText, "gatectl ", p.Control+" ")
			c.Description = strings.ReplaceAll(c.Description, "gatectl ", p.Control+" ")
		}
	}
	app := &cli.App{
		Name:      p.Control,
		Usage:     "steer running gates",
		UsageText: p.Control + " [OPTIONS] COMMAND",
		Metadata:  map[string]any{personaKey: p},
		Version:   version.Version,
		Description: "The gate is that of --socket, else that called --gate, else that of $GATEKIT_STATE_DIR or\n" +
			"$ROOTLESSKIT_STATE_DIR, else the one running gate of this user.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "`PATH` of the API's socket"},
			&cli.StringFlag{Name: "gate", Usage: "`NAME` of the gate, as given by gatekit --name"},
		},
		Commands:                  commands,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // a rule has commas
		Writer:                    stdout,
		ErrWriter:                 io.Discard, // what goes wrong is said once, by run
		OnUsageError:              usageError,
		ExitErrHandler:            func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if name := c.Args().First(); name != "" {
				return fmt.Errorf("%w: no such command: %s; see %s --help", errUsage, name, p.Control)
			}
			return fmt.Errorf("%w: a command is missing; see %s --help", errUsage, p.Control)
		},
	}
	if p.Plain {
		app.Flags = append(app.Flags, &cli.BoolFlag{Name: "debug", Usage: "accepted, and means nothing"})
	}
	return app
}

func usageError(c *cli.Context, err error, _ bool) error {
	help := c.App.Name + " --help"
	if c.Command != nil && c.Command.HelpName != "" && c.Command.Name != c.App.Name {
		help = c.Command.HelpName + " --help"
	}
	return fmt.Errorf("%w: %w; see %s", errUsage, err, help)
}

// noArguments refuses arguments to a command that takes none.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return usageError(c, fmt.Errorf("%s takes no argument: %q", c.Command.Name, c.Args().First()), true)
	}
	return nil
}

// someArguments refuses a command without arguments. what names one.
func someArguments(c *cli.Context, what string) error {
	if !c.Args().Present() {
		return usageError(c, fmt.Errorf("%s: %s is missing", c.Command.Name, what), true)
	}
	return nil
}

// listedArguments refuses that too, and options behind the first argument, which
// would be taken for arguments.
func listedArguments(c *cli.Context, what string) error {
	for _, arg := range c.Args().Slice() {
		if strings.HasPrefix(arg, "-") {
			return usageError(c, fmt.Errorf("%s: options stand before %s: %q", c.Command.Name, what, arg), true)
		}
	}
	return someArguments(c, what)
}
