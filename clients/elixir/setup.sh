#!/usr/bin/env bash
# Puts what the Elixir adapter needs in place, and compiles it; what is there already stays.
#
#   elixir        Debian's package (1.14 on OTP 25), installed with apt-get where it is missing
#   _deps/lib/    cowboy, cowlib, ranch and jsx: compiled Erlang that Debian ships inside its package rabbitmq-server,
#                 which is unpacked here, never installed or started. The package erlang-cowlib is too old for HTTP/2.
#   _build/       the adapter
#
# With Hex at hand none of this is needed: `mix deps.get && mix compile`.
set -euo pipefail
cd "$(dirname "$0")"

deps=(cowboy cowlib ranch jsx)
have_deps() {
  for name in "${deps[@]}"; do [ -f "_deps/lib/$name/ebin/$name.app" ] || return 1; done
}

missing() {
  echo "clients/elixir: $1" >&2
  exit 1
}

need=()
command -v mix >/dev/null || need+=(elixir)
have_deps || need+=(rabbitmq-server)

quiet=(-qq -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o APT::Sandbox::User=root)
if [ ${#need[@]} -gt 0 ]; then
  command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    missing "${need[*]} missing and there is no apt-get: install Elixir 1.14 or newer, and run 'mix deps.get' with Hex"
  # Only root may; without it the lists may be there anyway.
  [ "$(id -u)" != 0 ] || apt-get "${quiet[@]}" update
fi

if [ "${need[0]:-}" = elixir ]; then
  [ "$(id -u)" = 0 ] || missing "elixir is missing and only root can install it: apt-get install elixir"
  DEBIAN_FRONTEND=noninteractive apt-get "${quiet[@]}" install -y --no-install-recommends elixir >/dev/null
fi

if ! have_deps; then
  rm -rf _deps
  mkdir -p _deps/unpacked
  (cd _deps && apt-get "${quiet[@]}" download rabbitmq-server) ||
    missing "rabbitmq-server cannot be downloaded: run 'apt-get update' as root first"
  dpkg -x _deps/rabbitmq-server_*.deb _deps/unpacked
  mkdir _deps/lib
  for name in "${deps[@]}"; do
    mv _deps/unpacked/usr/lib/rabbitmq/lib/*/plugins/"$name"-[0-9]* "_deps/lib/$name"
  done
  rm -rf _deps/unpacked _deps/rabbitmq-server_*.deb
  have_deps || missing "this rabbitmq-server has none of ${deps[*]} where they are expected"
fi

mix compile
