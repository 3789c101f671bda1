#!/bin/sh
# Starts containerd on RootlessKit by the calls that nerdctl's script of this name
# makes. Written for the tests; the order, the flags and the directories are what
# they hold our rootlesskit to.
#
# usage: containerd-rootless.sh [FLAG-OF-CONTAINERD...]
#
# CONTAINERD_ROOTLESS_ROOTLESSKIT_FLAGS are more flags of rootlesskit,
# CONTAINERD_ROOTLESS_ROOTLESSKIT_DETACH_NETNS is auto or false.
set -eu

if [ -z "${INSIDE-}" ]; then
	flags=${CONTAINERD_ROOTLESS_ROOTLESSKIT_FLAGS-}
	if [ "${CONTAINERD_ROOTLESS_ROOTLESSKIT_DETACH_NETNS-auto}" = auto ] &&
		rootlesskit --help | grep -qw -- --detach-netns; then
		flags="--detach-netns $flags"
	fi
	INSIDE=1
	export INSIDE
	# The flags are words.
	# shellcheck disable=SC2086
	exec rootlesskit \
		--state-dir="$XDG_RUNTIME_DIR/containerd-rootless" \
		--net=slirp4netns --mtu=65520 \
		--slirp4netns-sandbox=auto --slirp4netns-seccomp=auto \
		--disable-host-loopback --port-driver=builtin \
		--copy-up=/etc --copy-up=/run --copy-up=/var/lib \
		--propagation=rslave \
		$flags "$0" "$@"
fi

# What the host has, as links into the hidden original, makes way for the user's.
rm -f /run/containerd /run/xtables.lock /var/lib/containerd /var/lib/cni /etc/containerd
ssl=$(realpath /etc/ssl)
rm -f /etc/ssl
mkdir /etc/ssl
mount --rbind "$ssl" /etc/ssl

lay() { # lay SOURCE TARGET
	mkdir -p "$1" "$2"
	mount --bind "$1" "$2"
}
lay "$XDG_RUNTIME_DIR/containerd" /run/containerd
lay "$HOME/.local/share/containerd" /var/lib/containerd
lay "$HOME/.local/share/cni" /var/lib/cni
lay "$HOME/.config/containerd" /etc/containerd
exec containerd "$@"
