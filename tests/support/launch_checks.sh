# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# What the tests of foreign launchers share. Sourced, not run. They take the program from PARDL_LAUNCH_WORKER.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

skip() {  # skip SENTENCE: ctest's code for a test that cannot run here
  echo "skipped: $1"
  exit 77
}
worker=${PARDL_LAUNCH_WORKER:-}
[ -x "$worker" ] || { echo "PARDL_LAUNCH_WORKER must name the built launch_worker"; exit 1; }

output=$(mktemp "${TMPDIR:-/tmp}/pardl-test-output-XXXXXX")
trap 'rm -f "$output"' EXIT

expect_code() {  # expect_code CODE COMMAND…: runs it with a limit, keeps what it printed
  local wanted=$1 code=0
  shift
  timeout --kill-after=10 150 "$@" >"$output" 2>&1 </dev/null || code=$?
  if [ "$wanted" = nonzero ] && [ $code != 0 ] && [ $code != 124 ]; then return 0; fi
  [ "$code" = "$wanted" ] && return 0
  echo "FAILED: code $code instead of $wanted from: $*"
  cat "$output"
  exit 1
}
expect() {  # expect COUNT TEXT: so many lines of the last output hold it
  local count
  count=$(grep -cF -- "$2" "$output" || true)
  [ "$count" = "$1" ] && return 0
  echo "FAILED: $count lines instead of $1 with: $2"
  cat "$output"
  exit 1
}
free_port() {  # a port of loopback that is free now
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
