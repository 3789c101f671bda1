package persona

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/gatekit/gatekit/pkg/api"
)

// PrintPorts prints forwards as "rootlessctl list-ports" does. Cells may be
// empty: scripts that read columns know rows of four and of six.
func PrintPorts(w io.Writer, ports []api.PortStatus) error {
	t := tabwriter.NewWriter(w, 4, 8, 4, ' ', 0)
	fmt.Fprintln(t, "ID\tPROTO\tPARENTIP\tPARENTPORT\tCHILDIP\tCHILDPORT\t")
	for _, p := range ports {
		s := p.Spec
		fmt.Fprintf(t, "%d\t%s\t%s\t%d\t%s\t%d\t\n", p.ID, s.Proto, s.ParentIP, s.ParentPort, s.ChildIP, s.ChildPort)
	}
	return t.Flush()
}

// PrintPortsJSON prints forwards, an object a line, as rootlessctl's list-ports
// and add-ports do with --json: without what RootlessKit does not know.
func PrintPortsJSON(w io.Writer, ports []api.PortStatus) error {
	e := json.NewEncoder(w)
	for _, p := range ports {
		p.SourceIP = ""
		if err := e.Encode(p); err != nil {
			return err
		}
	}
	return nil
}

// PrintInfo prints the gate as "rootlessctl info" does.
func PrintInfo(w io.Writer, i api.Info) error {
	text := fmt.Sprintf("- REST API version: %s\n- Implementation version: %s\n- State Directory: %s\n- Child PID: %d\n"+
		"- Network Driver: %s\n  - DNS: %v\n", i.APIVersion, i.Version, i.StateDir, i.ChildPID, i.NetworkDriver.Driver, i.NetworkDriver.DNS)
	if i.NetworkDriver.ChildIP != nil {
		text += fmt.Sprintf("  - IP: %v\n", i.NetworkDriver.ChildIP)
	}
	text += fmt.Sprintf("- Port Driver: %s\n  - Supported protocols: %v\n", i.PortDriver.Driver, i.PortDriver.Protos)
	_, err := io.WriteString(w, text)
	return err
}

// PrintInfoJSON prints it as "rootlessctl info --json" does, on several lines.
func PrintInfoJSON(w io.Writer, i api.Info) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	return e.Encode(i)
}
