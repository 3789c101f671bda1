// Package flagnames has the flag for each field of options that libraries name. The
// packages below pkg know nothing of command lines: what they say names the field that
// is wrong or that mends it, package and all, as parent.Options.SingleID. The programs
// know the flag that sets it, and spell every line so that they print.
package flagnames

import (
	"log/slog"
	"regexp"
	"strings"
)

// flags are the flags of the two programs by the fields that they set. A value is
// part of the name where the flag spells it in another way.
var flags = map[string]string{
	"parent.Options.Command":         "gatekit COMMAND",
	"parent.Options.CopyUpDirs":      "gatekit --copy-up",
	"parent.Options.CreateCgroupNS":  "gatekit --cgroupns",
	"parent.Options.CreatePIDNS":     "gatekit --pidns",
	"parent.Options.DetachNetNS":     "gatekit --detach-netns",
	"parent.Options.DisablePorts":    "gatekit --port-driver=none",
	"parent.Options.EvacuateCgroup2": "gatekit --evacuate-cgroup2",
	"parent.Options.GIDMap":          "gatekit --gidmap",
	"parent.Options.Network":         "gatekit --net",
	"parent.Options.Ports":           "gatekit --port-driver",
	"parent.Options.Propagation":     "gatekit --propagation",
	"parent.Options.Publish":         "gatekit --publish",
	"parent.Options.Reaper=false":    "gatekit --reaper=false",
	"parent.Options.RestorePorts":    "gatekit --restore-ports",
	"parent.Options.SingleID":        "gatekit --single-id",
	"parent.Options.StateDir":        "gatekit --state-dir",
	"parent.Options.SubIDSource":     "gatekit --subid-source",
	"parent.Options.UIDMap":          "gatekit --uidmap",

	"copyup.Options.Mode":          "gatekit --copy-up-mode",
	"slirp.Options.IPv4":           "gatekit --cidr",
	"slirp.Options.IPv6":           "gatekit --cidr6",
	"slirp.Options.SourceIP=false": "gatekit --source-ip=off",

	"hostnic.Options.Dir":             "gatekit --hostnic-dir",
	"hostnic.Options.Shared":          "gatekit --hostnic-shared",
	"hostnic.AroundOptions.Dir":       "gatekit --hostnic-dir",
	"hostnic.AroundOptions.Interface": "gatekit --hostnic-interface",
	"hostnic.BridgeOptions.Bridge":    "gatekit --hostnic-bridge",

	"hostnic.CreateOptions.Addresses":   "gatectl netns create --address",
	"hostnic.CreateOptions.DHCP":        "gatectl netns create --dhcp",
	"hostnic.CreateOptions.Dir":         "gatectl netns create --ns-dir",
	"hostnic.CreateOptions.Force":       "gatectl netns create --force",
	"hostnic.CreateOptions.Gateways":    "gatectl netns create --gateway",
	"hostnic.CreateOptions.Mode":        "gatectl netns create --mode",
	"hostnic.CreateOptions.Nameservers": "gatectl netns create --dns",
	"hostnic.DestroyOptions.Force":      "gatectl netns destroy --force",
}

var field = regexp.MustCompile(`\b[a-z]+\.[A-Za-z]*Options\.[A-Z]\w*(=false\b)?`)

// Spell puts flags in the place of the fields that a line of a library's names, for
// who calls a program of ours: "gatekit" or "gatectl". A flag of another program has
// that before it.
func Spell(program, line string) string {
	return field.ReplaceAllStringFunc(line, func(name string) string {
		command, ok := flags[name]
		if !ok {
			return name
		}
		if strings.HasPrefix(command, program+" ") {
			return command[strings.LastIndexByte(command, ' ')+1:]
		}
		return command
	})
}

// SpellAttr is Spell for a slog.HandlerOptions.ReplaceAttr.
func SpellAttr(program string) func([]string, slog.Attr) slog.Attr {
	return func(_ []string, a slog.Attr) slog.Attr {
		switch v := a.Value.Any().(type) {
		case string:
			a.Value = slog.StringValue(Spell(program, v))
		case error:
			a.Value = slog.StringValue(Spell(program, v.Error()))
		}
		return a
	}
}
