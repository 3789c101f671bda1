package flagnames

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestALineNamesTheFlagsOfTheProgramThatWasCalled(t *testing.T) {
	for _, c := range []struct{ program, line, want string }{
		{"gatekit", "it is not there (or use parent.Options.SingleID)", "it is not there (or use --single-id)"},
		{"gatekit", "parent.Options.Network=host has none", "--net=host has none"},
		{"gatekit", "parent.Options.Reaper=false cannot go with parent.Options.CreatePIDNS: reasons", "--reaper=false cannot go with --pidns: reasons"},
		{"gatekit", "slirp.Options.SourceIP=false says so", "--source-ip=off says so"},
		{"gatekit", "parent.Options.Command is missing", "COMMAND is missing"},
		{"gatekit", "hostnic.CreateOptions.Force lends it", "gatectl netns create --force lends it"},
		{"gatectl", "hostnic.CreateOptions.Force lends it", "--force lends it"},
		{"gatectl", "it takes parent.Options.Ports=builtin", "it takes gatekit --port-driver=builtin"},
		{"gatekit", "other.Options.SingleID and parent.Options", "other.Options.SingleID and parent.Options"},
	} {
		if got := Spell(c.program, c.line); got != c.want {
			t.Errorf("%s says %q, want %q", c.program, got, c.want)
		}
	}
}

func TestLogLinesNameFlagsInMessagesTextsAndErrors(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: SpellAttr("gatekit")}))
	log.Warn("without parent.Options.CopyUpDirs", "text", "parent.Options.CreatePIDNS", "error", fmt.Errorf("wrapped: %w", fmt.Errorf("use parent.Options.SingleID")), "number", 1)
	for _, want := range []string{`msg="without --copy-up"`, "text=--pidns", `error="wrapped: use --single-id"`, "number=1"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in %s", want, b.String())
		}
	}
}
