# What .ci/run and .ci/rooms share: Go, a PostgreSQL for the tests, and cleaning up. They source it.
# shellcheck shell=bash

step() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

work='' # directory of this run; of the cluster in it too
cleanup() {
  local status=$?
  trap - EXIT
  [ -z "${serving-}" ] || kill "$serving" 2>/dev/null || true
  if [ -n "$work" ]; then
    if [ -f "$work/data/postmaster.pid" ]; then
      as_postgres pg_ctl -D "$work/data" -m immediate stop >/dev/null || true
    fi
    rm -rf "$work"
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# postgres_bin prints the directory of the newest PostgreSQL server binaries, or fails.
postgres_bin() {
  local initdb
  initdb=$(command -v initdb) || initdb=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
  [ -x "$initdb" ] && dirname "$initdb"
}

install_missing() {
  local missing='' sudo='' cc
  postgres_bin >/dev/null || missing+=' postgresql'
  read -r cc _ <<<"$(go env CC)"
  command -v "$cc" >/dev/null || missing+=' gcc libc6-dev' # for -race
  command -v curl >/dev/null || missing+=' curl' # the tests try the commands that dev prints
  [ -e /etc/ssl/certs/ca-certificates.crt ] || ! command -v apt-get >/dev/null || missing+=' ca-certificates'
  [ -n "$missing" ] || return 0
  step "install$missing"
  command -v apt-get >/dev/null || fail "there is no apt-get here: install$missing yourself"
  [ "$EUID" -eq 0 ] || sudo=sudo
  $sudo apt-get update -qq
  # shellcheck disable=SC2086 # a list of packages
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
}

# as_postgres runs a command as somebody that PostgreSQL is willing to run as: not root.
as_postgres() {
  if [ "$EUID" -ne 0 ]; then
    "$@"
  elif id postgres >/dev/null 2>&1; then
    runuser -u postgres -- "$@"
  else
    runuser -u nobody -- "$@"
  fi
}

# may_create_databases says whether a server answers and lets us do what the tests do.
may_create_databases() {
  [ "$(PGCONNECT_TIMEOUT=3 psql -w -XAtq -d "$1" \
    -c 'select rolsuper or rolcreatedb from pg_roles where rolname = current_user' 2>/dev/null </dev/null)" = t ]
}

free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000))
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# start_cluster runs a throw-away PostgreSQL and prints nothing unless it fails; it sets TEST_DATABASE_URL.
start_cluster() {
  local password port
  [ -n "$work" ] || work=$(mktemp -d)
  password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  port=$(free_port)
  echo "$password" >"$work/password"
  [ "$EUID" -ne 0 ] || chown -R "$(as_postgres id -u)" "$work"
  if ! (
    cd "$work"
    as_postgres initdb -D data -U postgres -A scram-sha-256 --pwfile=password -E UTF8 --locale=C --no-sync &&
      as_postgres pg_ctl -D data -l "$work/server.log" -w start -o "-p $port -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c max_connections=200 -c fsync=off \
        -c synchronous_commit=off -c full_page_writes=off"
  ) >"$work/start.log" 2>&1; then
    cat "$work"/*.log >&2
    fail 'the throw-away PostgreSQL does not start'
  fi
  TEST_DATABASE_URL="postgres://postgres:$password@127.0.0.1:$port/postgres"
}

# find_tools makes go and PostgreSQL's programs commands.
find_tools() {
  command -v go >/dev/null || PATH="$PATH:/usr/local/go/bin"
  command -v go >/dev/null || fail 'Go is missing: https://go.dev/dl'
  install_missing
  PATH="$PATH:$(postgres_bin)" || fail 'PostgreSQL is installed, but without initdb'
  # In a container the checkout often belongs to somebody else; git then refuses, and Go with it.
  GOFLAGS="$(go env GOFLAGS) -buildvcs=false"
  export PATH GOFLAGS
}

# choose_server sets TEST_DATABASE_URL, unless it is set: the server on port 5432 of this machine, else one of its own.
choose_server() {
  local local_server='postgres://postgres@127.0.0.1:5432/postgres'
  if [ -n "${TEST_DATABASE_URL:-}" ]; then
    server='TEST_DATABASE_URL'
  elif may_create_databases "$local_server"; then
    TEST_DATABASE_URL=$local_server
    server=$local_server
  else
    step 'start a throw-away PostgreSQL: nothing to use on port 5432'
    start_cluster
    server='the throw-away PostgreSQL'
  fi
  export TEST_DATABASE_URL
}
