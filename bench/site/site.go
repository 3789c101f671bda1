package site

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Site is the place where a benchmark runs, seen from inside.
type Site struct {
	// User is the unprivileged user, as which everything is started.
	User User

	dir     string
	outside *thread
	plain   *thread // nil before AddCard
}

// User is the unprivileged user of a site: the number of it and of its group, and
// its subordinate range, of users and groups alike.
type User struct{ ID, First, Size int }

// Where root makes the site, the numbers are far from those of real users. A user
// has 65536 in all, so that the range inside is smaller than what gates like.
var (
	userOfRoot = User{ID: 1_950_000_000, First: 1_951_000_000, Size: fullRange}
	userOfUser = User{ID: 1000, First: 2000, Size: 60_000}
)

const fullRange = 1 << 16

// Few reports whether the subordinate range is smaller than the usual one.
func (u User) Few() bool { return u.Size < fullRange }

// Open makes the site: to be called once, by the program that Enter started, with
// the directory that Enter was given.
func Open(dir string) (*Site, error) {
	direct, err := entered()
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := mount("tmpfs", dir, "mode=0755"); err != nil {
		return nil, err
	}
	s := &Site{dir: dir}
	user := userOfUser
	furnish := s.furnishUnderGatekit
	if direct {
		user, furnish = userOfRoot, s.furnishDirectly
	}
	s.User = user
	if err := furnish(); err != nil {
		return nil, err
	}
	if err := s.addUser(user); err != nil {
		return nil, err
	}
	if s.outside, err = connect(); err != nil {
		return nil, err
	}
	return s, nil
}

// errNotInside is what Open returns to a program that Enter did not start.
var errNotInside = errors.New("these are not namespaces that were made for a site: only Enter starts the program inside")

// entered reports whether root made this site directly, or returns an error when
// these namespaces are no new ones: what Open does to mounts and to /etc must never
// be done to the machine itself. A new network has no interface up but lo, though it
// may have tunnels that some kernels add. A site has no other first process than
// this one or, where gatekit made it, a copy of /etc in memory.
func entered() (direct bool, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return false, err
	}
	used := slices.ContainsFunc(links, func(l netlink.Link) bool {
		flags := l.Attrs().Flags
		return flags&net.FlagUp != 0 && flags&net.FlagLoopback == 0
	})
	if os.Geteuid() != 0 || used {
		return false, errNotInside
	}
	if os.Getpid() == 1 { // gatekit has a first process of its own
		return true, nil
	}
	var etc unix.Statfs_t
	if err := unix.Statfs("/etc", &etc); err != nil {
		return false, fmt.Errorf("statfs /etc: %w", err)
	}
	if etc.Type != unix.TMPFS_MAGIC || os.Getenv("GATEKIT_STATE_DIR") == "" {
		return false, errNotInside
	}
	return false, nil
}

// Close ends the outside and the plain namespace. All else ends with this process.
func (s *Site) Close() {
	s.outside.close()
	if s.plain != nil {
		s.plain.close()
	}
}

// Path is a path below the site's own directory.
func (s *Site) Path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func mount(fstype, target, options string) error {
	if err := unix.Mount(fstype, target, fstype, 0, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	return nil
}

// furnishDirectly gives a site that root made its own /proc, an /etc that can be
// written, and a /dev/net/tun that is open to all, as gates need it.
func (s *Site) furnishDirectly() error {
	if err := mount("proc", "/proc", ""); err != nil {
		return err
	}
	for _, layer := range []string{"etc", "etc.work"} {
		if err := os.Mkdir(s.Path(layer), 0o755); err != nil {
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", s.Path("etc"), s.Path("etc.work"))
	if err := mount("overlay", "/etc", layers); err != nil {
		return err
	}
	err := writeEtc(map[string]string{
		"hosts":       "127.0.0.1 localhost\n::1 localhost\n",
		"resolv.conf": "nameserver 192.0.2.53\n", // nobody asks it
	})
	if err != nil {
		return err
	}
	node := s.Path("tun")
	if err := unix.Mknod(node, unix.S_IFCHR, int(unix.Mkdev(10, 200))); err != nil {
		return fmt.Errorf("mknod %s: %w", node, err)
	}
	if err := os.Chmod(node, 0o666); err != nil {
		return err
	}
	return bind(node, "/dev/net/tun")
}

// furnishUnderGatekit gives a site in a user namespace what gates inside need to
// write id maps: the set-uid bits of the machine's programs mean nothing here, so
// copies that belong to this namespace's root are laid over them. gatekit has made
// the rest.
func (s *Site) furnishUnderGatekit() error {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		program, err := lookPath(name)
		if err != nil {
			return err
		}
		own := s.Path(name)
		if err := copyProgram(program, own); err != nil {
			return err
		}
		if err := os.Chmod(own, 0o755|os.ModeSetuid); err != nil {
			return err
		}
		if err := bind(own, program); err != nil {
			return err
		}
	}
	return nil
}

// addUser writes the files of /etc that say who is who, with root and the
// unprivileged user alone, and makes the user's directories.
func (s *Site) addUser(u User) error {
	subids := fmt.Sprintf("ada:%d:%d\n", u.First, u.Size)
	err := writeEtc(map[string]string{
		"passwd": fmt.Sprintf("root:x:0:0::/root:/bin/sh\nada:x:%d:%d::%s:/bin/sh\n", u.ID, u.ID, s.Path("home")),
		"group":  fmt.Sprintf("root:x:0:\nada:x:%d:\n", u.ID),
		"subuid": subids,
		"subgid": subids,
	})
	if err != nil {
		return err
	}
	for _, dir := range []string{"home", "run", "tmp"} {
		if err := s.MakeDir(s.Path(dir)); err != nil {
			return err
		}
	}
	return os.Mkdir(s.Path("bin"), 0o755)
}

// writeEtc replaces files of /etc, which may be links to files of the machine.
func writeEtc(texts map[string]string) error {
	for name, text := range texts {
		path := filepath.Join("/etc", name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// MakeDir makes a directory of the user's own.
func (s *Site) MakeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Chown(path, s.User.ID, s.User.ID)
}

// Show lays a directory of the machine where the user can reach it, under that name, and
// returns its path there.
func (s *Site) Show(dir, name string) (string, error) {
	own := s.Path(name)
	if err := os.Mkdir(own, 0o755); err != nil {
		return "", err
	}
	return own, bind(dir, own)
}

// Install copies a program to where the user can start it, and returns its path
// there.
func (s *Site) Install(program string) (string, error) {
	own := s.Path("bin", filepath.Base(program))
	return own, copyProgram(program, own)
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return os.Chmod(to, 0o755)
}
