package report

// Row is one line of the table.
type Row struct {
	// ID names the row in results and in targets.
	ID, Title, Unit string

	// Lower is set where less is better.
	Lower bool
}

// yesOrNo is the unit of rows whose figures are 1 for yes and 0 for no.
const yesOrNo = "yes or no"

// Group are rows that belong together, with what is to be known of how they were
// taken.
type Group struct {
	Title, Note string
	Rows        []Row
}

// Groups returns all rows. Figures of rows that are not here are not shown.
func Groups() []Group {
	const perSecond, gigabits, received = "/s", "Gbit/s", "received/s"
	return []Group{
		{"TCP streams", "iperf3 between a client in the child and a server on the host. Out is from the child to the host.", []Row{
			{ID: "tcp1500.out", Title: "one stream out, MTU 1500", Unit: gigabits},
			{ID: "tcp1500.in", Title: "one stream in, MTU 1500", Unit: gigabits},
			{ID: "tcp1500x8.out", Title: "8 streams out, MTU 1500", Unit: gigabits},
			{ID: "tcp1500x8.in", Title: "8 streams in, MTU 1500", Unit: gigabits},
			{ID: "tcp65520.out", Title: "one stream out, MTU 65520", Unit: gigabits},
			{ID: "tcp65520.in", Title: "one stream in, MTU 65520", Unit: gigabits},
		}},
		{"A network card of the host's", "iperf3 between the outside and a client with the card, one end of a veth pair: in a gate (--net=hostnic), and in a network namespace without one. MTU 1500.", []Row{
			{ID: "card.out", Title: "one stream out, in a gate", Unit: gigabits},
			{ID: "card.in", Title: "one stream in, in a gate", Unit: gigabits},
			{ID: "plain.out", Title: "one stream out, in a plain namespace", Unit: gigabits},
			{ID: "plain.in", Title: "one stream in, in a plain namespace", Unit: gigabits},
		}},
		{"Round trips and short connections", "Round trips are one question at a time over one connection or flow. Connect, exchange a byte and close is done by 16 workers at once.", []Row{
			{ID: "tcp.trips", Title: "1-byte TCP round trips", Unit: perSecond},
			{ID: "tcp.p50", Title: "TCP round trip, median", Unit: "µs", Lower: true},
			{ID: "tcp.p99", Title: "TCP round trip, 99th percentile", Unit: "µs", Lower: true},
			{ID: "tcp.connect", Title: "connect, exchange, close", Unit: perSecond},
			{ID: "udp.trips", Title: "UDP round trips", Unit: perSecond},
			{ID: "udp.p50", Title: "UDP round trip, median", Unit: "µs", Lower: true},
			{ID: "udp.p99", Title: "UDP round trip, 99th percentile", Unit: "µs", Lower: true},
		}},
		{"UDP one way", "The child sends as fast as it can, one datagram with each system call; what counts is what arrives. Where next to nothing is lost, as on the host loopback, the sender is the limit, and otherwise the gate.", []Row{
			{ID: "udp100.out", Title: "datagrams of 100 bytes", Unit: received},
			{ID: "udp100.loss", Title: "of these lost", Unit: "%", Lower: true},
			{ID: "udp1200.out", Title: "datagrams of 1200 bytes", Unit: received},
			{ID: "udp1200.loss", Title: "of these lost", Unit: "%", Lower: true},
		}},
		{"Processor time", "Of the gate's own processes, the kernel's work in their name included, during one stream. The machine's is that of all processors and includes client and server.", []Row{
			{ID: "cpu1500.out", Title: "gate, out, MTU 1500", Unit: "s/GB", Lower: true},
			{ID: "cpu1500.in", Title: "gate, in, MTU 1500", Unit: "s/GB", Lower: true},
			{ID: "cpu65520.out", Title: "gate, out, MTU 65520", Unit: "s/GB", Lower: true},
			{ID: "cpu65520.in", Title: "gate, in, MTU 65520", Unit: "s/GB", Lower: true},
			{ID: "machine1500.out", Title: "machine, out, MTU 1500", Unit: "s/GB", Lower: true},
			{ID: "machine1500.in", Title: "machine, in, MTU 1500", Unit: "s/GB", Lower: true},
		}},
		{"Start and idle", "The gate's own processes, before any traffic. Each context switch of a thread of theirs is a wake-up.", []Row{
			{ID: "start.true", Title: "start to finish of true", Unit: "ms", Lower: true},
			{ID: "idle.memory", Title: "resident memory", Unit: "MB", Lower: true},
			{ID: "idle.wakeups", Title: "wake-ups", Unit: perSecond, Lower: true},
		}},
		{"Held connections and flows", "In the first round alone. Opened one after another, a byte exchanged over each, and held. Memory is what the gate's processes grew by. All is back when, after the client has closed, the gate has closed its descriptors and holds no more than a tenth of that memory, or 4 MiB. Nothing tells a gate that a client of UDP has closed: its flows stay until their time is over.", append(append(
			held("hold1000", "1 000 TCP connections", "connection"),
			held("hold10000", "10 000 TCP connections", "connection")...),
			held("flows10000", "10 000 UDP flows", "flow")...)},
		{"Scale", "Round trips over that many connections at the same time, a goroutine of the client's for each, and the processor time of the gate's processes for one of them. The fewer connections there are, the more of that is waking up.", []Row{
			{ID: "scale1.rate", Title: "round trips, 1 connection", Unit: perSecond},
			{ID: "scale10.rate", Title: "round trips, 10 connections", Unit: perSecond},
			{ID: "scale100.rate", Title: "round trips, 100 connections", Unit: perSecond},
			{ID: "scale1000.rate", Title: "round trips, 1 000 connections", Unit: perSecond},
			{ID: "scale1.cpu", Title: "gate, 1 connection", Unit: "µs/trip", Lower: true},
			{ID: "scale10.cpu", Title: "gate, 10 connections", Unit: "µs/trip", Lower: true},
			{ID: "scale100.cpu", Title: "gate, 100 connections", Unit: "µs/trip", Lower: true},
			{ID: "scale1000.cpu", Title: "gate, 1 000 connections", Unit: "µs/trip", Lower: true},
		}},
		{"Forwarded ports, client on the host", "A client on the host's loopback, a server in the child. slirp4netns stands for RootlessKit's builtin port driver here. Datagrams are sent without pause: in bursts of 16, one system call each (UDP_SEGMENT, as QUIC's senders do), and one by one. The target is for the bursts: one by one, the sender keeps a processor busy with no more datagrams than the host loopback shows, and no gate can pass on more than are sent.", []Row{
			{ID: "forward.in", Title: "one stream, host to child", Unit: gigabits},
			{ID: "forward.out", Title: "one stream, child to host", Unit: gigabits},
			{ID: "forward.connect", Title: "connect, exchange, close", Unit: perSecond},
			{ID: "forward.trips", Title: "1-byte TCP round trips", Unit: perSecond},
			{ID: "forward.udptrips", Title: "UDP round trips", Unit: perSecond},
			{ID: "forward.burst1200", Title: "UDP one way, 1200 bytes, in bursts", Unit: received},
			{ID: "forward.udp1200", Title: "UDP one way, 1200 bytes, one by one", Unit: received},
			{ID: "forward.udp1200loss", Title: "of these lost", Unit: "%", Lower: true},
		}},
		{"Forwarded ports, client on another machine", "The client is behind a veth pair. A gate that hides the client's address from the service has less to do.", []Row{
			{ID: "remote.address", Title: "client's address kept", Unit: yesOrNo},
			{ID: "remote.in", Title: "one stream, client to child", Unit: gigabits},
			{ID: "remote.out", Title: "one stream, child to client", Unit: gigabits},
			{ID: "remote.connect", Title: "connect, exchange, close", Unit: perSecond},
			{ID: "remote.udp1200", Title: "UDP one way, 1200 bytes", Unit: received},
		}},
		{"A container of Docker's", "iperf3 between a container on Docker's default bridge, MTU 1500, and another machine, behind a veth pair. Rootless dockerd runs on gatekit by RootlessKit's name and, in the column of slirp4netns, on RootlessKit with its builtin port driver, each as their documents start it. A gate that hides the client's address from the container has less to do.", []Row{
			{ID: "docker.out", Title: "one stream, container to the machine", Unit: gigabits},
			{ID: "docker.in", Title: "one stream, to a published port", Unit: gigabits},
			{ID: "docker.back", Title: "one stream, from a published port", Unit: gigabits},
			{ID: "docker.address", Title: "client's address kept", Unit: yesOrNo},
		}},
	}
}

func held(id, what, one string) []Row {
	after := Row{ID: id + ".back", Title: what + ": all back after", Unit: "s", Lower: true}
	if one == "flow" {
		after = Row{ID: id + ".left", Title: what + ": descriptors left after 10 s", Unit: "open", Lower: true}
	}
	return []Row{
		{ID: id + ".failed", Title: what + ": not opened", Unit: one + "s", Lower: true},
		{ID: id + ".time", Title: what + ": time to open", Unit: "s", Lower: true},
		{ID: id + ".memory", Title: what + ": memory", Unit: "KiB/" + one, Lower: true},
		after,
	}
}

// Title is what a row is called; its ID where there is no such row.
func Title(id string) string { return rowOf(id).Title }
