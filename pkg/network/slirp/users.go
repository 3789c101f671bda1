package slirp

import "sync/atomic"

// users counts those who may use a descriptor, so that its number is not used
// after it was closed and given to another. The last one to leave closes. The
// zero value is closed.
type users struct{ n atomic.Int32 }

// open counts the first user, the owner.
func (u *users) open() { u.n.Store(1) }

// enter is false when the last user has left.
func (u *users) enter() bool {
	for {
		n := u.n.Load()
		if n == 0 {
			return false
		}
		if u.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// leave is true for the last user, who closes.
func (u *users) leave() bool { return u.n.Add(-1) == 0 }
