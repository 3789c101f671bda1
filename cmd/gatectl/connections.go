package main

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/api/client"
)

func connectionsCommand() *cli.Command {
	return &cli.Command{
		Name:      "connections",
		Usage:     "list the flows now",
		UsageText: "gatectl connections [--json]",
		Flags:     []cli.Flag{jsonFlag()},
		Action:    view[[]api.Connection]{ask: (*client.Client).Connections, rows: connectionRows}.show,
	}
}

func connectionRows(list []api.Connection) [][]string {
	rows := [][]string{{"PROTO", "DIRECTION", "CHILD", "REMOTE", "FORWARD", "SOURCEIP", "STATE", "AGE", "IDLE", "IN", "OUT"}}
	for _, f := range list {
		forward := ""
		if f.Forward != 0 {
			forward = strconv.Itoa(f.Forward)
		}
		rows = append(rows, []string{
			f.Proto, f.Direction, flowEnd(f, f.ChildIP, f.ChildPort), flowEnd(f, f.RemoteIP, f.RemotePort), forward, f.SourceIP, f.State,
			span(f.AgeSeconds), span(f.IdleSeconds), count(f.BytesIn), count(f.BytesOut),
		})
	}
	return rows
}

// flowEnd is one end of a flow. There are no ports in icmp.
func flowEnd(f api.Connection, addr netip.Addr, port int) string {
	if f.Proto == "icmp" {
		return addr.String()
	}
	return netip.AddrPortFrom(addr, uint16(port)).String()
}

// span is a number of seconds as people write it.
func span(seconds int) string { return (time.Duration(seconds) * time.Second).String() }

// count is a number of bytes, where that is known.
func count(bytes *uint64) string {
	if bytes == nil {
		return ""
	}
	return strconv.FormatUint(*bytes, 10)
}
