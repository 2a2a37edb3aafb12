# What was built, kept outside the checkout under hashes of what it is made of, for all labs of this user. Sourced by
# scripts/lab.
# shellcheck shell=bash disable=SC2154,SC2034 # settings of the other parts

hash_of() { sha256sum | cut -c1-16; }

# Comments in the scripts do not count: rebuilding takes minutes.
root_key() { { echo "$node_packages $other_engines" && grep -v '^[[:space:]]*#' "$repo/scripts/provision"; } | hash_of; }

image_key() {
	{
		root_key
		declare -f build_image ensure_root_tar debstrap assemble_root make_disks write_ext4 \
			build_container_images build_container_image shrink_root load_containers
		cd "$lab_d" && find node images -type f | LC_ALL=C sort | xargs sha256sum
	} | hash_of
}

root_tar() { echo "$cache/root-$(root_key).tar.zst"; }

image_dir() { echo "$cache/image-$(image_key)"; }

# Sets image to the finished image, built when it is not there. Two labs may want it at the same moment.
ensure_image() {
	image=$(image_dir)
	[[ -e $image/base.raw ]] && return
	mkdir -p "$cache"
	flock --close "$cache/lock" "$lab_d/../lab" build-image || die "the node image was not built"
	[[ -e $image/base.raw ]] || die "the recipes changed while the image was being built: once more, please"
}

# Runs under the cache's lock.
build_image_once() {
	local work start=$SECONDS
	image=$(image_dir)
	[[ -e $image/base.raw ]] && return
	work=$(mktemp -d "$cache/build.XXXXXX")
	# shellcheck disable=SC2064 # the value of now
	trap "as_root rm -rf '$work'" EXIT
	say "building the node image (once; some minutes)"
	build_image "$work"
	mv -T "$work" "$image"
	trap - EXIT
	say "image built in $((SECONDS - start))s"
}

# A lab says that its disks stand on an image.
register_lab() {
	grep -qsxF "$run" "$1/labs" || echo "$run" >>"$1/labs"
}

# Is any node's disk on this image?
image_in_use() {
	local lab
	while read -r lab; do
		if grep -qsxF "$1" "$lab"/n*/image; then return 0; fi
	done < <(cat "$1/labs" 2>/dev/null)
	return 1
}

# Removes images that neither the recipes of now nor any lab's disks need.
prune_cache() {
	local old
	for old in "$cache"/image-* "$cache"/root-*.tar.zst; do
		[[ ! -e $old || $old == "$(image_dir)" || $old == "$(root_tar)" ]] && continue
		if [[ -d $old ]] && image_in_use "$old"; then continue; fi
		say "removing $old"
		as_root rm -rf "$old"
	done
}
