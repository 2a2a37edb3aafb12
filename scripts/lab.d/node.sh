# One virtual machine: its QEMU process, its disks, its ssh. Sourced by scripts/lab.
# A node's folder holds: root, tank, spare (disks), image (what they stand on), port, accel, saved (what its saved state
# is made of), pid, qmp and con (sockets), ssh (the multiplexing socket), console.log.
# shellcheck shell=bash disable=SC2154,SC2034 # settings of the other parts

# --- accelerator --------------------------------------------------------------------------------------------------------

# kvm or tcg. A host may offer /dev/kvm and still hang a guest's kernel, so one short boot decides, once per host boot.
accelerator() {
	local verdict
	case ${LAB_ACCEL:-auto} in
	kvm | tcg) echo "$LAB_ACCEL" && return ;;
	auto) ;;
	*) die "LAB_ACCEL must be kvm or tcg, not $LAB_ACCEL" ;;
	esac
	verdict=$cache/accel-$(</proc/sys/kernel/random/boot_id)
	if [[ ! -s $verdict ]]; then
		rm -f "$cache"/accel-*
		if kvm_boots; then echo kvm; else echo tcg; fi >"$verdict"
		say "virtual machines run on $(<"$verdict")"
	fi
	cat "$verdict"
}

kvm_boots() {
	[[ -w /dev/kvm ]] || return
	# The kernel stops for want of a root disk; that it speaks at all is the proof.
	timeout 15 qemu-system-x86_64 -accel kvm -cpu host -m 256 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
		-kernel "$image/vmlinuz" -append 'console=ttyS0 panic=-1' </dev/null 2>/dev/null | grep -qm1 'Kernel panic'
}

# --- QEMU ---------------------------------------------------------------------------------------------------------------

# start_qemu FOLDER NUMBER ACCEL QEMU-OPTIONS...
start_qemu() {
	local node=$1 number=$2 accel=$3 port cpu=max smp
	shift 3
	((${#node} < 90)) || die "$node is too long a path for a socket: set FLOCKER_LAB_DIR to a shorter one"
	port=$(free_port "$node")
	case $accel in
	kvm) cpu=host ;;
	tcg) accel=tcg,thread=multi,tb-size=512 ;;
	esac
	smp=$(processors "${accel%%,*}")
	rm -f "$node"/{qmp,con,ssh,paused}
	qemu-system-x86_64 -name "flocker-n$number" -machine pc -accel "$accel" -cpu "$cpu" -smp "$smp" -m "$memory" \
		-nodefaults -no-user-config -display none -rtc base=utc,clock=host \
		-kernel "$image/vmlinuz" -initrd "$image/initrd" \
		-append "$kernel_options $(clock_options "${accel%%,*}") systemd.hostname=n$number lab.node=$number" \
		-netdev "user,id=mgmt,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22" \
		-device "virtio-net-pci,netdev=mgmt,mac=52:54:00:77:00:0$number,romfile=" \
		-netdev "$(lan_netdev "$number")" -device "virtio-net-pci,netdev=lan,mac=52:54:00:77:01:0$number,romfile=" \
		-device virtio-rng-pci -chardev "socket,id=con,path=$node/con,server=on,wait=off,logfile=$node/console.log" \
		-serial chardev:con -qmp "unix:$node/qmp,server=on,wait=off" -pidfile "$node/pid" -daemonize "$@" ||
		die "QEMU did not start"
}

# possible_cpus: a kernel that could get a second processor trusts no TSC, and each look at the clock goes to QEMU's emulated HPET
# instead, under the lock that the disks want too.
kernel_options='root=/dev/vda rw console=ttyS0 quiet apparmor=0 selinux=0 mitigations=off possible_cpus=1'

# An emulated TSC is the host's, and a node that must find its speed by itself, while it boots on a busy host, finds a wrong one:
# seen at a quarter. Its watchdog takes it for broken then, or later for nothing but a pause, and the node looks at the HPET for good.
# So it is told the speed, which a machine whose clock does not vary names in its cpuinfo, and needs no watchdog.
clock_options() {
	local khz
	[[ $1 == tcg && ! -e /sys/devices/system/cpu/cpu0/cpufreq ]] || return 0
	khz=$(awk '/^cpu MHz/ { printf "%.0f", $4 * 1000; exit }' /proc/cpuinfo)
	[[ -z $khz ]] || echo "tsc_early_khz=$khz tsc=nowatchdog"
}

# Each node has one processor. QEMU before 8.1 leaves the guest's memory barriers out where it emulates a machine that can have
# only one (its commit c914d46d), although its own threads do the disks' and network's part of virtio: now and then a disk
# that is done says so to nobody, and the pool stands still for minutes. One that could be plugged in, and never is, keeps them.
processors() { if [[ $1 == tcg ]]; then echo 1,maxcpus=2; else echo 1; fi; }

# The LAN is a switch on a unix socket; the image's first boot needs none.
lan_netdev() { if (($1)); then echo "vde,id=lan,sock=$run/lan"; else echo user,id=lan,restrict=on; fi; }

# A node keeps its port as long as nobody else took it.
free_port() {
	local port used
	used=$(ss -Htln | awk '{ sub(/.*:/, "", $4); print $4 }')
	for port in $(cat "$1/port" 2>/dev/null) $(shuf -i 42200-42999 -n 20); do
		grep -qx "$port" <<<"$used" || break
	done
	echo "$port" | tee "$1/port"
}

# The pid of a folder's QEMU, checked against its command line: pids are used again.
qemu_pid() {
	local pid
	pid=$(cat "$1/pid" 2>/dev/null) && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$1/qmp" && echo "$pid"
}

qemu_gone() { ! qemu_pid "$1" >/dev/null; }

kill_qemu() {
	local pid
	close_ssh "$1"
	pid=$(qemu_pid "$1") || return 0
	kill -KILL "$pid"
	retry 20 "QEMU to die" qemu_gone "$1"
}

frozen() {
	local pid
	pid=$(qemu_pid "$1") && { [[ -e $1/paused ]] || grep -q '^State:.T' "/proc/$pid/status" 2>/dev/null; }
}

# One command of QEMU's monitor; what it prints is an error.
monitor() {
	local line answers=0
	{
		coproc QMP { socat - "UNIX-CONNECT:$1/qmp"; }
		printf '{"execute":"qmp_capabilities"}\n{"execute":"human-monitor-command","arguments":{"command-line":"%s"}}\n' "$2" >&"${QMP[1]}"
		while ((answers < 2)) && read -r -t 120 line <&"${QMP[0]}"; do
			case $line in '{"return"'*) answers=$((answers + 1)) ;; '{"error"'*) break ;; esac
		done
		kill "$QMP_PID"
		wait "$QMP_PID" || true
	} 2>/dev/null
	[[ $line == '{"return": ""}'* ]] || die "QEMU refused '$2': $line"
}

# --- disks and the saved state ------------------------------------------------------------------------------------------

make_node_disks() {
	local node=$1
	rm -f "$node"/{root,tank,spare,saved}
	qemu-img create -q -f qcow2 -F raw -b "$image/base.raw" "$node/root"
	qemu-img create -q -f qcow2 "$node/tank" 8G
	qemu-img create -q -f qcow2 "$node/spare" 4G
	echo "$image" >"$node/image"
	register_lab "$image"
}

disk_options() {
	local node=$1 disk
	for disk in root tank spare; do
		printf '%s\n' -drive "file=$node/$disk,if=none,id=$disk,format=qcow2,cache=writeback,discard=unmap" \
			-device "virtio-blk-pci,drive=$disk,serial=$disk,id=disk-$disk"
	done
}

# A saved state fits only the machine it was taken from.
state_key() { echo "$image $memory $1 $(processors "$1") $kernel_options $(qemu-system-x86_64 --version | head -n1)"; }

has_saved_state() { [[ -e $1/saved && $(<"$1/saved") == "$(state_key "$2")" ]]; }

start_node() { # FOLDER [QEMU-OPTION...]
	local node=$1 image accel options
	image=$(<"$node/image")
	shift
	accel=$(accelerator)
	echo "$accel" >"$node/accel"
	mapfile -t options < <(disk_options "$node")
	start_qemu "$node" "${node##*/n}" "$accel" "${options[@]}" "$@"
}

save_state() {
	local node=$1
	node_ssh "$node" 'sync; echo 3 >/proc/sys/vm/drop_caches'
	close_ssh "$node"
	rm -f "$node/saved"
	monitor "$node" 'savevm clean'
	state_key "$(<"$node/accel")" >"$node/saved"
}

# --- ssh ----------------------------------------------------------------------------------------------------------------

# Emulated connections are slow to set up, so all commands to a node share one.
ssh_options() {
	printf '%s\n' -F none -i "$(<"$1/image")/key" -p "$(<"$1/port")" -o ControlPath="$1/ssh" -o BatchMode=yes -o LogLevel=ERROR \
		-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 \
		-o ServerAliveInterval=10 -o ServerAliveCountMax=6
}

open_ssh() {
	local options
	mapfile -t options < <(ssh_options "$1")
	ssh "${options[@]}" -o ControlMaster=yes -Nf root@127.0.0.1 </dev/null >/dev/null 2>&1
}

close_ssh() {
	[[ -S $1/ssh ]] || return 0
	ssh -F none -o ControlPath="$1/ssh" -O exit root@127.0.0.1 2>/dev/null || true
	rm -f "$1/ssh"
}

node_ssh() {
	local node=$1 options
	shift
	[[ -S $node/ssh ]] || open_ssh "$node" || true
	mapfile -t options < <(ssh_options "$node")
	# shellcheck disable=SC2029 # the node's shell reads the command
	ssh "${options[@]}" root@127.0.0.1 "$@"
}

wait_ssh() {
	close_ssh "$1"
	retry "${2:-300}" "ssh of ${1##*/}" ssh_answers "$1"
}

ssh_answers() {
	qemu_gone "$1" && die "the machine of ${1##*/} has stopped; see $1/console.log"
	open_ssh "$1"
}
