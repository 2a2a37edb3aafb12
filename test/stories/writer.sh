#!/bin/bash
# usage: writer.sh CONTAINER
# Inserts rows into the table "rows" of a PostgreSQL container, one commit at a time, for ever. Prints each id once its
# commit was acknowledged, and "connect" for every connection it makes.
set -u
container=$1
sql='psql -qAtX -U postgres'
while :; do
	address=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$container" 2>/dev/null)
	next=$([[ -n $address ]] && $sql -h "$address" -c 'select coalesce(max(id), 0) + 1 from rows' 2>/dev/null) || {
		sleep 0.2
		continue
	}
	echo connect || exit 0
	# A row follows from its id. The pause leaves an emulated machine some time for its other work.
	seq "$next" 1000000000 |
		sed "s/.*/insert into rows values (&, repeat(md5('&'), 8)) returning id; select from pg_sleep(0.02);/" |
		PGOPTIONS='-c client_min_messages=warning' $sql -h "$address" -v ON_ERROR_STOP=1 2>/dev/null | grep --line-buffered .
done
