# Builds what nodes boot from: kernel, initrd and one disk image that all nodes share. Sourced by scripts/lab.
# Two stages: the root (packages and the ZFS module), then the image (our files, the container images, one boot to load
# them). cache.sh keeps both under a hash of what they are made of.
# shellcheck shell=bash disable=SC2154,SC2034 # settings of the other parts

node_packages=systemd,systemd-sysv,dbus,udev,kmod,linux-image-cloud-amd64,linux-headers-cloud-amd64,initramfs-tools
node_packages+=,openssh-server,iproute2,iputils-ping,procps,psmisc,less,zstd,netcat-openbsd,util-linux-extra,tcpdump,strace
node_packages+=,docker-compose,redis-tools,postgresql-client-15,nano
# For comparison. They depend on ZFS, so they come after it: apt would else take the one of the release.
other_engines='sanoid mbuffer lzop pv'

# Builds the image in a folder.
build_image() {
	ensure_root_tar
	build_container_images "$1/oci" &
	local containers=$!
	assemble_root "$1"
	wait "$containers" || die "a container image did not build; see $cache/build.log"
	make_disks "$1"
	load_containers "$1"
	as_root rm -rf "$1/root" "$1/oci" "$1/containers.raw"
}

# --- the root -----------------------------------------------------------------------------------------------------------

ensure_root_tar() {
	local tar
	tar=$(basename "$(root_tar)")
	[[ -e $cache/$tar ]] && return
	say "installing Debian and building the ZFS module"
	"$repo/scripts/provision" --print-sources | debstrap --variant=minbase --include="$node_packages" \
		--customize-hook="mkdir -p \"\$1/opt/provision\"" \
		--customize-hook="cp '$repo/scripts/provision' '$repo'/scripts/packaging/systemd/*.service \"\$1/opt/provision\"" \
		--customize-hook="chroot \"\$1\" /opt/provision/provision --chroot --arc-max 134217728" \
		--customize-hook="chroot \"\$1\" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y $other_engines" \
		bookworm "$cache/new-$tar" - || die "the root did not build; see $cache/build.log"
	as_root mv "$cache/new-$tar" "$cache/$tar"
}

# mmdebstrap with what all our roots share: no manuals and translations, apt's settings as on this machine.
debstrap() {
	local options=() option
	while read -r option; do options+=("--aptopt=$option"); done < <(apt-config dump | grep -E '^Acquire::(http|https|Check|Retries)')
	as_root mmdebstrap --quiet --mode=root --format=tar "${options[@]}" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
		"$@" >>"$cache/build.log" 2>&1
}

# Our own files on top of the root, and a small initrd.
assemble_root() {
	local root=$1/root
	mkdir "$root"
	as_root tar -C "$root" --zstd -xf "$(root_tar)"
	as_root cp -r --no-preserve=ownership "$lab_d/node/." "$root/"
	as_root install -m 644 "$repo"/scripts/packaging/systemd/*.service "$root/etc/systemd/system/"

	ssh-keygen -q -t ed25519 -N '' -C flocker-lab -f "$1/key"
	as_root install -d -m 700 "$root/root/.ssh"
	as_root install -m 600 "$1/key.pub" "$root/root/.ssh/authorized_keys"
	as_root install -m 600 "$1/key" "$root/root/.ssh/id_ed25519"

	as_root chroot "$root" /bin/bash -euc '
		# apt is of no use without a network, and these units would only cost time at each boot.
		rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /etc/apt/sources.list*
		systemctl -q mask apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service e2scrub_all.timer fstrim.timer \
			man-db.timer sanoid.timer systemd-networkd.service networking.service getty@tty1.service
		systemctl -q enable lab-network lab-pool
		systemctl -q disable redis-server postgresql 2>/dev/null || true
		mkdir -p /etc/systemd/system/serial-getty@ttyS0.service.d /var/log/journal /var/lib/lab
		printf "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear %%I xterm\n" \
			>/etc/systemd/system/serial-getty@ttyS0.service.d/lab.conf
		echo "/dev/vda / ext4 errors=remount-ro 0 1" >/etc/fstab
		: >/etc/machine-id
		rm -f /etc/hostname
		: >/etc/resolv.conf
		echo "MODULES=list" >/etc/initramfs-tools/conf.d/lab
		printf "%s\n" virtio_pci virtio_blk ext4 >>/etc/initramfs-tools/modules
		update-initramfs -u -k all >/dev/null' || die "the node's files could not be installed; see above"
	as_root cp "$root"/boot/vmlinuz-* "$1/vmlinuz"
	as_root cp "$root"/boot/initrd.img-* "$1/initrd"
	as_root chown -R "$(id -u):$(id -g)" "$1/vmlinuz" "$1/initrd"
}

make_disks() {
	say "writing the disk image"
	write_ext4 "$1/base.raw" 8G "$1/root"
	write_ext4 "$1/containers.raw" 2G "$1/oci"
}

write_ext4() {
	truncate -s "$2" "$1"
	as_root mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1 -d "$3" "$1"
}

# --- container images ---------------------------------------------------------------------------------------------------

build_container_images() {
	mkdir "$1"
	local recipe
	for recipe in "$lab_d"/images/*.sh; do build_container_image "$recipe" "$1" || return; done
}

# One container image as a tar and the text of its settings, from a recipe that names packages, the paths to keep and to
# drop (libraries follow by themselves), Docker's settings, and adds files of its own.
build_container_image() (
	local tag packages changes keep='' drop='' stop_signal=SIGTERM name out=$2 work
	name=$(basename "$1" .sh)
	# shellcheck source=/dev/null
	. "$1"
	work=$(as_root mktemp -d "$cache/build.$name.XXXXXX")
	# shellcheck disable=SC2064
	trap "as_root rm -rf '$work'" EXIT
	"$repo/scripts/provision" --print-sources | debstrap --variant=extract --include="$packages" bookworm "$work/all.tar" -
	as_root bash -euc "$(declare -f fill shrink_root); shrink_root '$work' '$keep' '$drop'; fill '$work/root'
		tar -C '$work/root' --numeric-owner -cf '$out/$name.tar' ." || die "container image $tag did not build"
	printf '%s\n' "$tag" "${changes[@]}" "STOPSIGNAL $stop_signal" | as_root tee "$out/$name.txt" >/dev/null
)

# From everything that the packages hold to what the programs need: kept paths, their shared libraries, busybox as shell.
shrink_root() { # FOLDER KEEP DROP
	local all=$1/all root=$1/root path library loader
	mkdir -p "$all" "$root"/{bin,etc,tmp,lib64}
	tar -C "$all" -xf "$1/all.tar"
	chmod 1777 "$root/tmp"
	cd "$all" || return
	for path in $2; do cp -a --parents "$path" "$root"; done # $2 and $3 are patterns
	cd "$root" || return
	for path in $3; do rm -rf "$path"; done
	if [[ -n $2 ]]; then
		loader=$all/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
		cp -L "$loader" "$root/lib64/"
		find "$root" -type f \( -perm -u+x -o -name '*.so' \) | while read -r path; do
			"$loader" --library-path "$all/usr/lib/x86_64-linux-gnu:$all/lib/x86_64-linux-gnu" --list "$path" 2>/dev/null || true
		done | awk '$3 ~ /^\// { print $3 }' | sort -u | while read -r library; do
			mkdir -p "$root/lib/x86_64-linux-gnu"
			cp -L "$library" "$root/lib/x86_64-linux-gnu/"
		done
	fi
	cp "$all/bin/busybox" "$root/bin/busybox"
	chroot "$root" /bin/busybox --install -s /bin
	printf '%s\n' 'root:x:0:0:root:/:/bin/sh' 'postgres:x:70:70::/var/lib/postgresql:/bin/sh' 'nobody:x:65534:65534::/:/bin/false' \
		'www-data:x:33:33::/:/bin/false' >"$root/etc/passwd"
	printf '%s\n' 'root:x:0:' 'postgres:x:70:' 'nogroup:x:65534:' 'nobody:x:65533:' 'www-data:x:33:' >"$root/etc/group"
}

# Boots the image once and lets its own Docker import the container images.
load_containers() {
	say "loading the container images in a first boot"
	local accel image=$1 node=$1/golden
	mkdir "$node"
	echo "$image" >"$node/image"
	accel=$(accelerator)
	start_qemu "$node" 0 "$accel" -drive "file=$1/base.raw,if=none,id=root,format=raw" -device virtio-blk-pci,drive=root \
		-drive "file=$1/containers.raw,if=none,id=c,format=raw" -device virtio-blk-pci,drive=c,serial=containers
	# shellcheck disable=SC2064
	trap "kill_qemu '$node'; as_root rm -rf '$1'" EXIT
	if ! { wait_ssh "$node" && node_ssh "$node" lab-import >>"$cache/build.log" 2>&1 && retry 120 "its shutdown" qemu_gone "$node"; }; then
		cp "$node/console.log" "$cache/build-console.log"
		die "the container images could not be loaded; see $cache/build.log and $cache/build-console.log"
	fi
	rm -rf "$node"
	trap - EXIT
	# shellcheck disable=SC2064
	trap "as_root rm -rf '$1'" EXIT
}
