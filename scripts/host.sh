# shellcheck shell=sh
# What the scripts here know about the host: which distribution it is, how its
# packages are installed, and how to do a thing as root. Sourced, not run.
#
# Every change to the host is said before it is made, by `as_root`, on a line
# that starts with "+": the command as it is run. A host that lacks nothing is
# not touched, and needs neither root nor sudo.

# say TEXT... prints a line that begins a step.
say() {
	printf '==> %s\n' "$*"
}

# die TEXT... ends the script with one line that says why.
die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# have NAME: is there a program of this name? /usr/sbin and /sbin are looked
# into too, since Debian leaves them out of a user's PATH.
have() {
	PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1
}

# as_root COMMAND... says the command and runs it as root, by sudo or doas where
# that is not who we are.
as_root() {
	printf '+ %s\n' "$*"
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif have sudo; then
		sudo -- "$@"
	elif have doas; then
		doas "$@"
	else
		die "this needs root, and there is neither sudo nor doas here; run as root: $*"
	fi
}

# distribution prints debian, fedora, alpine or arch, after the names in
# os-release(5), and nothing for any other.
distribution() {
	[ -r /etc/os-release ] || return 0
	# shellcheck disable=SC1091
	for id in $(. /etc/os-release && printf '%s %s' "${ID-}" "${ID_LIKE-}"); do
		case $id in
		debian | ubuntu) echo debian && return ;;
		fedora | rhel | centos) echo fedora && return ;;
		alpine) echo alpine && return ;;
		arch | archarm) echo arch && return ;;
		esac
	done
}

# present NEED: is it there? A need is the name of a program, or the path of a
# file that is not empty.
present() {
	case $1 in
	/*) [ -s "$1" ] ;;
	*) have "$1" ;;
	esac
}

# packages_for FILE prints the packages of this distribution that bring what
# FILE lists and the host lacks. FILE is a table: a need, then its package in
# Debian, Fedora, Alpine and Arch, "-" where a distribution has none.
packages_for() {
	case $(distribution) in
	debian) column=2 ;;
	fedora) column=3 ;;
	alpine) column=4 ;;
	arch) column=5 ;;
	*) column=0 ;;
	esac
	grep -v -e '^#' -e '^$' "$1" | while read -r need row; do
		present "$need" && continue
		if [ "$column" = 0 ]; then
			printf '%s\n' "$need"
			continue
		fi
		# shellcheck disable=SC2086
		set -- "$need" $row
		shift $((column - 1))
		[ "$1" = - ] || printf '%s\n' "$1"
	done | sort -u | tr '\n' ' '
}

# install_from FILE installs those packages.
install_from() {
	packages=$(packages_for "$1")
	[ -n "$packages" ] || return 0
	say "Installing what this host lacks: $packages"
	# The names are words of their own from here on.
	# shellcheck disable=SC2086
	case $(distribution) in
	debian)
		as_root apt-get -qq update
		as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends $packages
		;;
	fedora) as_root dnf -q -y install $packages ;;
	alpine) as_root apk add $packages ;;
	arch) as_root pacman -Sy --noconfirm --needed $packages ;;
	*) die "this distribution is unknown here; install what brings these, then start again: $packages" ;;
	esac
	missing=$(packages_for "$1")
	[ -z "$missing" ] || die "still missing after the installation: $missing"
}

# apparmor_profile_of PROGRAM prints the file of the AppArmor profile that
# scripts/prepare-host makes for it, on hosts that need one.
apparmor_profile_of() {
	printf '/etc/apparmor.d/gatekit%s\n' "$(printf '%s' "$1" | tr / .)"
}
