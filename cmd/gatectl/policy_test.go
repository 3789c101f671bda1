package main

import (
	"strings"
	"testing"
)

func TestThePolicyIsShownAndChanged(t *testing.T) {
	home(t)
	startGate(t, "one", 1)
	for _, step := range []struct {
		args string
		want string
	}{
		{"policy set --default=deny --allow=tcp://*:443 --allow=udp://*:53,123", ""},
		{"policy allow icmp://*", ""},
		{"policy deny any://10.0.0.0/8 any://@host", ""},
		{"policy show --json", `{"default":"deny","allow":["tcp://*:443","udp://*:53,123","icmp://*"],"deny":["any://10.0.0.0/8","any://@host"]}` + "\n"},
		{"policy show", "ACTION  RULE\ndeny    any://10.0.0.0/8\ndeny    any://@host\nallow   tcp://*:443\nallow   udp://*:53,123\nallow   icmp://*\ndeny    (default)\n"},
		{"policy set --default=allow", ""},
		{"policy show --json", `{"default":"allow","allow":[],"deny":[]}` + "\n"},
	} {
		stdout, stderr, code := gatectl(strings.Fields(step.args)...)
		if code != 0 || stdout != step.want || stderr != "" {
			t.Errorf("%s: code %d\nstdout %q\nwant   %q\nstderr %q", step.args, code, stdout, step.want, stderr)
		}
	}
	stdout, stderr, code := gatectl("policy", "allow", "x")
	if code != 1 || stdout != "" || !strings.Contains(stderr, `rule "x"`) {
		t.Errorf("a bad rule: code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}
