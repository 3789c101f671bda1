package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
)

// The name that the demonstration's DNS server knows, and what it is told to
// be: addresses that are kept for documents (RFC 2606, RFC 5737, RFC 3849).
const hostName = "hello.gatekit.test."

var hostAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.80"), netip.MustParseAddr("2001:db8::80")}

// hostServers are the two servers of the demonstration on the host's loopback,
// on ports that the kernel picks: a file server and a DNS server.
type hostServers struct {
	files net.Listener
	names net.PacketConn
	text  string // of the one file, /hello.txt
}

func listenOnHost(text string) (*hostServers, error) {
	files, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	names, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		files.Close()
		return nil, err
	}
	return &hostServers{files: files, names: names, text: text}, nil
}

// Run serves until ctx is done, and closes both sockets.
func (s *hostServers) Run(ctx context.Context) error {
	web := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/hello.txt" {
				http.NotFound(w, r)
				return
			}
			fmt.Fprintln(w, s.text)
		}),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := web.Serve(s.files); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("file server: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := s.answerNames(); !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("DNS server: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return errors.Join(web.Close(), s.names.Close())
	})
	return group.Wait()
}

// answerNames answers queries until the socket is closed. What is no query gets
// no answer.
func (s *hostServers) answerNames() error {
	query := make([]byte, 1500)
	for {
		n, from, err := s.names.ReadFrom(query)
		if err != nil {
			return err
		}
		answer, err := answerName(query[:n])
		if err != nil {
			continue
		}
		if _, err := s.names.WriteTo(answer, from); err != nil {
			return err
		}
	}
}

// answerName answers one query (RFC 1035): the addresses of hostName, and
// NXDOMAIN for any other name.
func answerName(query []byte) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	if header.Response {
		return nil, errors.New("an answer, not a query")
	}
	message := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID:               header.ID,
			Response:         true,
			Authoritative:    true,
			RecursionDesired: header.RecursionDesired,
		},
		Questions: []dnsmessage.Question{question},
	}
	if !strings.EqualFold(question.Name.String(), hostName) {
		message.RCode = dnsmessage.RCodeNameError
		return message.Pack()
	}
	for _, addr := range hostAddresses {
		var body dnsmessage.ResourceBody
		switch {
		case question.Type == dnsmessage.TypeA && addr.Is4():
			body = &dnsmessage.AResource{A: addr.As4()}
		case question.Type == dnsmessage.TypeAAAA && addr.Is6():
			body = &dnsmessage.AAAAResource{AAAA: addr.As16()}
		default:
			continue
		}
		message.Answers = append(message.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class, TTL: 60},
			Body:   body,
		})
	}
	return message.Pack()
}
