# shellcheck shell=bash disable=SC2034 # read by image.sh
# flocker-test/postgres:15 - PostgreSQL that makes its cluster in $PGDATA at the first start.
tag=flocker-test/postgres:15
packages=busybox-static,util-linux,postgresql-15,postgresql-client-15
# SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for clients to leave.
changes=('ENTRYPOINT ["/entrypoint"]' 'CMD ["postgres"]' 'EXPOSE 5432'
	'ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin' 'ENV PGDATA=/var/lib/postgresql/data/pgdata')
# Just-in-time compilation is most of the size and useless for tests.
drop='usr/lib/postgresql/15/lib/llvmjit* usr/lib/postgresql/15/lib/bitcode usr/share/zoneinfo/right'
stop_signal=SIGINT
keep='usr/bin/setpriv usr/lib/postgresql usr/share/postgresql usr/share/zoneinfo usr/lib/locale/C.utf8'

fill() {
	mkdir -p "$1/var/lib/postgresql/data" "$1/run/postgresql"
	ln -s /run "$1/var/run"
	chown -R 70:70 "$1/var/lib/postgresql" "$1/run/postgresql"
	cat >"$1/entrypoint" <<'SCRIPT'
#!/bin/sh
# POSTGRES_PASSWORD sets the superuser's password; without one everybody is trusted. More arguments go to postgres.
set -eu
[ "$1" = postgres ] || exec "$@"
shift
# By its path: this shell prefers busybox' own, which knows less.
as_postgres='/usr/bin/setpriv --reuid=postgres --regid=postgres --clear-groups'

# A new volume belongs to root.
mkdir -p "$PGDATA" /run/postgresql
chown postgres:postgres "$(dirname "$PGDATA")" /run/postgresql
chown -R postgres:postgres "$PGDATA"
chmod 700 "$PGDATA"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
	method=trust
	if [ -n "${POSTGRES_PASSWORD:-}" ]; then
		method=scram-sha-256
		printf '%s\n' "$POSTGRES_PASSWORD" >/run/postgresql/password
		chown postgres /run/postgresql/password
	fi
	$as_postgres initdb --username=postgres --encoding=UTF8 --locale=C --auth-local=trust --auth-host=$method \
		${POSTGRES_PASSWORD:+--pwfile=/run/postgresql/password}
	rm -f /run/postgresql/password
	echo "host all all all $method" >>"$PGDATA/pg_hba.conf"
fi
exec $as_postgres postgres -D "$PGDATA" -c listen_addresses='*' -c jit=off "$@"
SCRIPT
	chmod 755 "$1/entrypoint"
}
