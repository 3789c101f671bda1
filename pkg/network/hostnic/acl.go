package hostnic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Tags and permissions of POSIX ACLs in the form that the kernel takes
// (include/uapi/linux/posix_acl.h and posix_acl_xattr.h).
const (
	aclVersion = 2

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclMask     = 0x10
	aclOther    = 0x20

	aclRead    = 4
	aclWrite   = 2
	aclExecute = 1
)

// openTo lets one user besides root read a directory and go through it, and nobody
// else. Files of namespaces are readable to all by themselves, so the directory is
// what keeps others out. It stays root's: its owner could remove names that are
// mounted on.
func openTo(dir string, uid int) error {
	const none = math.MaxUint32 // entries without an id
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range []struct {
		tag, permissions uint16
		id               uint32
	}{
		{aclUserObj, aclRead | aclWrite | aclExecute, none},
		{aclUser, aclRead | aclExecute, uint32(uid)},
		{aclGroupObj, 0, none},
		{aclMask, aclRead | aclExecute, none},
		{aclOther, 0, none},
	} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.permissions)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	err := unix.Setxattr(dir, "system.posix_acl_access", b, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("the file system of %s has no access control lists: choose a directory below /run", dir)
	}
	if err != nil {
		return &os.PathError{Op: "setxattr", Path: dir, Err: err}
	}
	return nil
}
