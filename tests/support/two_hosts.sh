#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# two_hosts.sh COMMAND…: runs COMMAND at once on two hosts, that is, in two network namespaces with a name of their own
# each and one wire between them. COMMAND finds its number, 0 or 1, in HOST, and the address of host 0 in HOST0.
# Ends with 0 if both do; 77 where such hosts cannot be made.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
skip() {
  echo "skipped: $1"
  exit 77
}
command -v ip >/dev/null || skip "ip is not installed (apt-get install iproute2)"
[ "$(id -u)" = 0 ] || skip "network namespaces need root"

name=pardl-$$
hosts=$(mktemp "${TMPDIR:-/tmp}/pardl-test-hosts-XXXXXX")
cleanup() {
  ip netns del "$name-0" 2>/dev/null || true
  ip netns del "$name-1" 2>/dev/null || true
  rm -f "$hosts"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
ip netns add "$name-0" 2>/dev/null || skip "this machine makes no network namespaces"
ip netns add "$name-1"
ip link add pardl0 netns "$name-0" type veth peer name pardl1 netns "$name-1" || skip "this machine makes no veth pairs"
printf '127.0.0.1 localhost\n10.231.7.1 pardl-host0\n10.231.7.2 pardl-host1\n' >"$hosts"
for host in 0 1; do
  ip -n "$name-$host" link set lo up
  ip -n "$name-$host" addr add "10.231.7.$((host + 1))/24" dev "pardl$host"
  ip -n "$name-$host" link set "pardl$host" up
done

pids=()
for host in 0 1; do
  HOST=$host HOST0=10.231.7.1 ip netns exec "$name-$host" unshare --uts --mount --propagation private bash -c \
    'hostname "pardl-host$HOST"; mount --bind "$0" /etc/hosts; exec "$@"' "$hosts" "$@" &
  pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
