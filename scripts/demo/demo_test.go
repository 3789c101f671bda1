package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestAnswerName(t *testing.T) {
	for _, test := range []struct {
		name  string
		asked string
		typ   dnsmessage.Type
		rcode dnsmessage.RCode
		body  dnsmessage.ResourceBody
	}{
		{"the IPv4 address of the name", hostName, dnsmessage.TypeA, dnsmessage.RCodeSuccess,
			&dnsmessage.AResource{A: netip.MustParseAddr("192.0.2.80").As4()}},
		{"the IPv6 address of the name", hostName, dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess,
			&dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::80").As16()}},
		{"the name in capitals", "HELLO.gatekit.TEST.", dnsmessage.TypeA, dnsmessage.RCodeSuccess,
			&dnsmessage.AResource{A: netip.MustParseAddr("192.0.2.80").As4()}},
		{"a type that the name has not", hostName, dnsmessage.TypeMX, dnsmessage.RCodeSuccess, nil},
		{"another name", "other.test.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			query := dnsmessage.Message{
				Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
				Questions: []dnsmessage.Question{
					{Name: dnsmessage.MustNewName(test.asked), Type: test.typ, Class: dnsmessage.ClassINET},
				},
			}
			raw, err := query.Pack()
			if err != nil {
				t.Fatal(err)
			}
			answer, err := answerName(raw)
			if err != nil {
				t.Fatal(err)
			}
			var got dnsmessage.Message
			if err := got.Unpack(answer); err != nil {
				t.Fatal(err)
			}
			if !got.Response || got.ID != 7 || got.RCode != test.rcode {
				t.Errorf("header %v, want an answer to 7 with %v", got.Header, test.rcode)
			}
			switch {
			case test.body == nil && len(got.Answers) != 0:
				t.Errorf("answers %v, want none", got.Answers)
			case test.body != nil && (len(got.Answers) != 1 || got.Answers[0].Body.GoString() != test.body.GoString()):
				t.Errorf("answers %v, want %v", got.Answers, test.body.GoString())
			}
		})
	}
}

func TestAnswerNameRefuses(t *testing.T) {
	answer, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{Response: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(hostName), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"an empty datagram": {},
		"half a header":     {0, 7, 1},
		"an answer":         answer,
	} {
		if got, err := answerName(raw); err == nil {
			t.Errorf("%s was answered with %x", name, got)
		}
	}
}

func TestDefaultGateway(t *testing.T) {
	const (
		head4  = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
		local4 = "tap0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
		zero32 = "00000000000000000000000000000000"
		local6 = "fd676174656b00000000000000000000 40 " + zero32 + " 00 " + zero32 + " 00000100 00000001 00000000 00000001     tap0\n"
		none6  = zero32 + " 00 " + zero32 + " 00 " + zero32 + " ffffffff 00000001 00000000 00200200       lo\n"
	)
	// The kernel prints IPv4 addresses in the byte order of the host.
	raw := netip.MustParseAddr("10.0.2.2").As4()
	order := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(raw[:]))
	for _, test := range []struct{ name, table, want string }{
		{"the IPv4 default route", head4 + "tap0\t00000000\t" + order + "\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" + local4, "10.0.2.2"},
		{"no IPv4 default route", head4 + local4, ""},
		{"the IPv6 default route after the local ones", local6 + none6 +
			zero32 + " 00 " + zero32 + " 00 fd676174656b00000000000000000002 00000400 00000001 00000000 00000003     tap0\n", "fd67:6174:656b::2"},
		{"no IPv6 default route", local6 + none6, ""},
		{"a gateway that is no number", head4 + "tap0\t00000000\tnonsense\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", ""},
		{"an empty table", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "route")
			if err := os.WriteFile(file, []byte(test.table), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := defaultGateway(file)
			if test.want == "" && err == nil {
				t.Errorf("got %s, want an error", got)
			}
			if test.want != "" && (err != nil || got.String() != test.want) {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
		})
	}
}

func TestEnvironmentOfAUserHasNothingOfRootsSession(t *testing.T) {
	u := &user.User{Username: "someone", HomeDir: "/home/someone"}
	got := environmentOf(u, []string{"HOME=/root", "PATH=/bin", "XDG_RUNTIME_DIR=/run/user/0", "USER=root", "LANG=C"})
	want := []string{"PATH=/bin", "LANG=C", "HOME=/home/someone", "USER=someone", "LOGNAME=someone", "PWD=/home/someone"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
