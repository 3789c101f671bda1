package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// runAs turns this process into args[1:], run as the user args[0] in its home.
// It does what runuser(1) does, which is not on every distribution: without a
// new session, so that a shell keeps its terminal, and without PAM.
func runAs(_ context.Context, args []string) error {
	u, err := user.Lookup(args[0])
	if err != nil {
		return err
	}
	program, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	uid, gid, groups, err := ids(u)
	if err != nil {
		return err
	}
	if err := os.Chdir(u.HomeDir); err != nil {
		return err
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setgid(gid); err != nil {
		return fmt.Errorf("setgid %d: %w", gid, err)
	}
	if err := syscall.Setuid(uid); err != nil {
		return fmt.Errorf("setuid %d: %w", uid, err)
	}
	err = syscall.Exec(program, args[1:], environmentOf(u, os.Environ()))
	return fmt.Errorf("exec %s: %w", program, err)
}

// ids are the numbers behind a user.
func ids(u *user.User) (uid, gid int, groups []int, err error) {
	names, err := u.GroupIds()
	if err != nil {
		return 0, 0, nil, fmt.Errorf("groups of %s: %w", u.Username, err)
	}
	for _, name := range append([]string{u.Uid, u.Gid}, names...) {
		id, err := strconv.Atoi(name)
		if err != nil {
			return 0, 0, nil, fmt.Errorf("ids of %s: %w", u.Username, err)
		}
		groups = append(groups, id)
	}
	return groups[0], groups[1], groups[2:], nil
}

// environmentOf is env as the user's own: what names root's session and
// directories goes, all else stays.
func environmentOf(u *user.User, env []string) []string {
	session := []string{"HOME", "USER", "LOGNAME", "MAIL", "XDG_RUNTIME_DIR", "XDG_SESSION_ID",
		"DBUS_SESSION_BUS_ADDRESS", "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND", "OLDPWD", "PWD"}
	env = slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(session, name)
	})
	return append(env, "HOME="+u.HomeDir, "USER="+u.Username, "LOGNAME="+u.Username, "PWD="+u.HomeDir)
}
