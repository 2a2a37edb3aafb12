# shellcheck shell=bash disable=SC2034 # read by image.sh
# flocker-test/redis:7 - Redis with an append-only file below /data.
tag=flocker-test/redis:7
packages=busybox-static,redis-server,redis-tools
changes=('ENTRYPOINT ["/entrypoint"]' 'CMD ["redis-server"]' 'ENV PATH=/usr/bin:/bin' 'EXPOSE 6379' 'WORKDIR /data')
keep='usr/bin/redis-*'

fill() {
	mkdir -p "$1/data"
	cat >"$1/entrypoint" <<'SCRIPT'
#!/bin/sh
# More arguments are Redis' own and win over these.
if [ "$1" = redis-server ]; then
	shift
	exec redis-server --bind 0.0.0.0 --protected-mode no --dir /data --appendonly yes --save '' "$@"
fi
exec "$@"
SCRIPT
	chmod 755 "$1/entrypoint"
}
