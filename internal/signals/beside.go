package signals

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// beside says whether the process pid is in this one's process group, and in its
// cgroup or one below: where a signal that reaches all of these reaches it, too. One
// that cannot be looked at, because it has ended or has covered /proc, is taken to be
// where it was started.
func beside(pid int) bool {
	group, err := unix.Getpgid(pid)
	if err != nil {
		return true
	}
	return group == unix.Getpgrp() && withinCgroups(readCgroups("self"), readCgroups(strconv.Itoa(pid)))
}

// readCgroups returns the cgroups of a process, named as in /proc, one of each
// hierarchy (cgroups(7)); none when they cannot be read.
func readCgroups(process string) []string {
	text, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// withinCgroups says whether each of its cgroups is the own one or below it.
func withinCgroups(own, its []string) bool {
	if len(own) != len(its) {
		return true // not read
	}
	for i := range own {
		if its[i] != own[i] && !strings.HasPrefix(its[i], strings.TrimSuffix(own[i], "/")+"/") {
			return false
		}
	}
	return true
}
