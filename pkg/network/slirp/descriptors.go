package slirp

import (
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
)

// descriptors are those that flows may take, of all that this process may have
// (RLIMIT_NOFILE in getrlimit(2)). The last of these are not among them: the owner of a
// gate whose namespace opens whatever it can has to reach the API still, by which the
// flows are ended.
//
// A new descriptor has the lowest number that is free (open(2)). So its number says how
// many there are at least, and nothing has to be counted. The zero value has no bound.
type descriptors struct{ end int } // the first number that is not for flows; 0 is none

// spareDescriptors are how many flows leave, where there are many; else it is an eighth.
const spareDescriptors = 32

// newDescriptors returns those of this process, as it is limited now.
func newDescriptors() descriptors {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return descriptors{} // it fails on no Linux
	}
	all := int(min(limit.Cur, math.MaxInt32))
	return descriptors{all - min(spareDescriptors, all/8)}
}

// has says whether a descriptor is for flows.
func (d descriptors) has(fd int) bool { return d.end == 0 || fd < d.end }

// take passes a new descriptor on, or closes one that is not for flows: then the error is
// EMFILE, as if there were no more.
func (d descriptors) take(fd int, err error) (int, error) {
	if err != nil || d.has(fd) {
		return fd, err
	}
	linux.Close(fd)
	return -1, os.NewSyscallError("socket", unix.EMFILE)
}
