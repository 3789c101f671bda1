package main

import (
	"context"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/api/client"
)

// view is a command that prints one thing that the gate tells: as JSON, or as a table.
type view[T any] struct {
	ask  func(*client.Client, context.Context) (T, error)
	rows func(T) [][]string

	// How RootlessKit's program prints it, where there is such a command.
	plain, plainJSON func(io.Writer, T) error
}

// show is the command's action.
func (v view[T]) show(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	var told T
	if err := withGate(c, func(gate *client.Client) (err error) {
		told, err = v.ask(gate, c.Context)
		return err
	}); err != nil {
		return err
	}
	switch plain := personaOf(c).Plain && v.plain != nil; {
	case plain && c.Bool("json"):
		return v.plainJSON(c.App.Writer, told)
	case plain:
		return v.plain(c.App.Writer, told)
	case c.Bool("json"):
		return printJSON(c.App.Writer, told)
	}
	return printTable(c.App.Writer, v.rows(told))
}
