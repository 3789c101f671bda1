package main

import "testing"

func TestConnections(t *testing.T) {
	home(t)
	startGate(t, "one", 1)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"connections"}, `PROTO  DIRECTION  CHILD          REMOTE              FORWARD  SOURCEIP  STATE        AGE      IDLE  IN  OUT
icmp   outbound   10.0.2.100     2001:db8::7         -        -         open         5s       0s    -   -
tcp    forward    10.0.2.100:80  [2001:db8::7]:5000  3        preserve  half-closed  1h1m40s  1m1s  0   12345
`},
		{[]string{"connections", "--json"}, `[{"proto":"icmp","direction":"outbound","state":"open","childIP":"10.0.2.100","childPort":77,"remoteIP":"2001:db8::7","remotePort":0,"ageSeconds":5,"idleSeconds":0},` +
			`{"proto":"tcp","direction":"forward","state":"half-closed","childIP":"10.0.2.100","childPort":80,"remoteIP":"2001:db8::7","remotePort":5000,"forward":3,"sourceIP":"preserve","ageSeconds":3700,"idleSeconds":61,"bytesIn":0,"bytesOut":12345}]` + "\n"},
	} {
		stdout, stderr, code := gatectl(tc.args...)
		if code != 0 || stdout != tc.want || stderr != "" {
			t.Errorf("%q: code %d\nstdout %s\nwant   %s\nstderr %q", tc.args, code, stdout, tc.want, stderr)
		}
	}
}
