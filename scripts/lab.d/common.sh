# Settings and small helpers of scripts/lab. Sourced, never run.
# shellcheck shell=bash disable=SC2154,SC2034 # settings of the other parts

cache=${FLOCKER_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flocker-lab}
run=${FLOCKER_LAB_DIR:-$cache/run}
memory=${LAB_MEM:-1024}
max_nodes=5

say() { printf 'lab: %s\n' "$*" >&2; }
warn() { printf 'lab: warning: %s\n' "$*" >&2; }
die() {
	printf 'lab: %s\n' "$*" >&2
	exit 1
}

as_root() {
	if ((EUID == 0)); then
		"$@"
	else
		command -v sudo >/dev/null || die "building the image needs root: install sudo or run as root"
		sudo -n true 2>/dev/null || say "building the image needs root; sudo may ask for your password"
		sudo "$@"
	fi
}

# Command and the package that brings it, for building and for running.
tools='qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils vde_switch:vde2 socat:socat ssh:openssh-client zstd:zstd
	mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs flock:util-linux ss:iproute2'

ensure_tools() {
	local pair missing=() PATH=$PATH:/usr/sbin:/sbin
	for pair in $tools; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
	done
	((${#missing[@]})) || return 0
	command -v apt-get >/dev/null || die "please install: ${missing[*]}"
	say "installing ${missing[*]}"
	as_root apt-get -qq update >/dev/null
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install --no-install-recommends -y \
		"${missing[@]}" >/dev/null || die "apt could not install: ${missing[*]}"
}

# Runs a function once for each argument after '--', all at the same time; fails if any failed.
in_parallel() {
	local call=() pids=() pid failed=0
	while [[ $1 != -- ]]; do call+=("$1") && shift; done
	shift
	local each
	for each; do
		"${call[@]}" "$each" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
	return "$failed"
}

# retry SECONDS WHAT COMMAND...: until the command succeeds; then says what it waited for.
retry() {
	local limit=$1 what=$2 start=$SECONDS
	shift 2
	until "$@"; do
		((SECONDS - start < limit)) || {
			say "gave up after ${limit}s waiting for $what"
			return 1
		}
		sleep 0.2
	done
}
