// Command demo is what `make run` shows where there is no terminal to open a
// shell on: a gate started by an unprivileged user, asked who it is, fetching a
// file from a server on the host through the gateway, looking a name up through
// the gateway's DNS, and answering on a published port.
//
// It needs no network and no program but gatekit, gatectl and a shell: the file
// server and the DNS server on the host, and what is run inside the gate, are
// commands of this program.
//
//	demo tour BINDIR        the demonstration, with the programs in BINDIR
//	demo as USER CMD...     runs CMD as USER (scripts/run, as root)
//
// and inside the gate:
//
//	demo addresses          prints the interfaces and the default gateways
//	demo gateway            prints the IPv4 gateway
//	demo fetch URL          prints what the URL answers
//	demo lookup NAME        prints the addresses of a name, and who knew them
//	demo serve ADDR TEXT    answers HTTP with TEXT until its stdin ends
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// A command takes its arguments, whose number has been checked.
type command struct {
	args int // at least so many, exactly so many unless more
	more bool
	run  func(ctx context.Context, args []string) error
}

func commands() map[string]command {
	return map[string]command{
		"tour":      {args: 1, run: tour},
		"as":        {args: 2, more: true, run: runAs},
		"addresses": {run: addresses},
		"gateway":   {run: gateway},
		"fetch":     {args: 1, run: fetch},
		"lookup":    {args: 1, run: lookup},
		"serve":     {args: 2, run: serve},
	}
}

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	name, args := os.Args[1], os.Args[2:]
	c, ok := commands()[name]
	if !ok || len(args) < c.args || len(args) > c.args && !c.more {
		usage()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := c.run(ctx, args)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo %s: %v\n", name, err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: demo tour BINDIR | as USER CMD... | addresses | gateway | fetch URL | lookup NAME | serve ADDR TEXT")
	os.Exit(2)
}
