# PostgreSQL in a pod: the superuser's password is in $POSTGRES_PASSWORD, the data under /data.
set -eu
if [ ! -e /data/cluster ]; then
  # Whole or not at all, also when this is killed in between.
  rm -rf /data/unfinished
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username=postgres --auth=scram-sha-256 --pwfile=/tmp/password --encoding=UTF8 --locale=C --pgdata=/data/unfinished
  echo 'host all all all scram-sha-256' >>/data/unfinished/pg_hba.conf
  mv /data/unfinished /data/cluster
fi
exec postgres -D /data/cluster -c listen_addresses='*' -c unix_socket_directories=/tmp -c wal_level=logical "$@"
