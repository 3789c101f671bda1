package test

import (
	"testing"
)

func TestTheSessionOfTheDockerDocument(t *testing.T) {
	withDocker(t, func(t *testing.T, d *docker) {
		d.start(t, "")
		d.importImage(t)
		d.docker(t, "tag", "base", "busybox") // which people get from a registry
		d.Signal(signalTerm)
		d.Wait(t)
		runExamples(t, d.Host, "../docs/docker.md", 8, d.command("bash", "-s"))
	})
}
