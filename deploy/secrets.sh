#!/bin/sh
# Makes what compose.yaml keeps secret, in secrets/ beside it; what is there already stays, and gets the modes that
# containers need. docs/deploy.md
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
# Containers read the files as users of their own; on this machine, the directory keeps all others out.
chmod 700 secrets

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
make() {
    [ -e "secrets/$1" ] || { cat >"secrets/$1.new" && chmod 644 "secrets/$1.new" && mv "secrets/$1.new" "secrets/$1"; }
}

random | make postgres_password
random | make grafana_password
# Of the gateway, for Prometheus: empty until one is made (prometheus/prometheus.yml).
: | make gateway_token
password=$(cat secrets/postgres_password)
printf 'postgresql://pgvec:%s@postgres:5432/pgvec\n' "$password" | make dsn
printf '"pgvec" "%s"\n' "$password" | make pgbouncer_users
for file in secrets/*; do
    if [ -f "$file" ]; then chmod 644 "$file"; fi
done
echo "secrets/ holds: $(ls secrets | tr '\n' ' ')"
