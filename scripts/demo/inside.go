package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Every wait of a command inside the gate ends after this.
const patience = 20 * time.Second

// addresses prints what `ip address` and `ip route` would.
func addresses(context.Context, []string) error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return err
		}
		var texts []string
		for _, addr := range addrs {
			texts = append(texts, addr.String())
		}
		fmt.Printf("%s: mtu %d, %s\n", i.Name, i.MTU, strings.Join(texts, " "))
	}
	for _, file := range []string{"/proc/net/route", "/proc/net/ipv6_route"} {
		if addr, err := defaultGateway(file); err == nil {
			fmt.Printf("default via %s\n", addr)
		}
	}
	return nil
}

func gateway(context.Context, []string) error {
	addr, err := defaultGateway("/proc/net/route")
	if err == nil {
		fmt.Println(addr)
	}
	return err
}

// defaultGateway reads one of the kernel's routing tables, whose columns are
// named in route_seq_show (net/ipv4/fib_trie.c) and rt6_info_route
// (net/ipv6/route.c): the IPv4 one in the host's byte order.
func defaultGateway(file string) (netip.Addr, error) {
	table, err := os.Open(file)
	if err != nil {
		return netip.Addr{}, err
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		var next string
		switch {
		case len(f) == 11 && f[1] == "00000000" && f[7] == "00000000":
			next = f[2]
		case len(f) == 10 && f[1] == "00" && f[0] == strings.Repeat("0", 32):
			next = f[4]
		}
		raw, err := hex.DecodeString(next)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("%s: %w", file, err)
		}
		if len(raw) == 4 {
			binary.NativeEndian.PutUint32(raw, binary.BigEndian.Uint32(raw))
		}
		if addr, ok := netip.AddrFromSlice(raw); ok && !addr.IsUnspecified() {
			return addr, nil
		}
	}
	if err := lines.Err(); err != nil {
		return netip.Addr{}, fmt.Errorf("read %s: %w", file, err)
	}
	return netip.Addr{}, fmt.Errorf("no default gateway in %s", file)
}

func fetch(ctx context.Context, args []string) error {
	text, err := get(ctx, args[0])
	if err == nil {
		fmt.Print(text)
	}
	return err
}

// get is the body that a URL answers with.
func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// Not by a proxy that the environment names.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, answer.Status)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	return string(body), err
}

// lookup asks the servers of /etc/resolv.conf, as any program would.
func lookup(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var mu sync.Mutex
	var server string // guarded by mu; the last one asked
	resolver := net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			server = address
			mu.Unlock()
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, address)
		},
	}
	addrs, err := resolver.LookupHost(ctx, args[0])
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if server == "" {
		return fmt.Errorf("%s is in /etc/hosts: no server was asked", args[0])
	}
	fmt.Printf("%s is %s, says %s\n", strings.TrimSuffix(args[0], "."), strings.Join(addrs, " and "), server)
	return nil
}

// serve answers every request with one line. It says "serving" when it
// listens, and ends when its stdin does.
func serve(ctx context.Context, args []string) error {
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Printf("serving on %s, inside\n", listener.Addr())
	server := &http.Server{
		ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, args[1])
		}),
	}
	// The read ends with stdin, at the latest with the process.
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	go func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
