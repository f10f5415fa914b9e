#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# benchmarks/compile_time.sh FLAGS-FOLDER COMPILER REPEAT: what `#include <pardl/ddp.hpp>` beside <torch/torch.h> adds to
# the compilation of one unit, -O2 -c without a precompiled header, user seconds, for each part that this machine has.
# Called by benchmarks/run, once for each repetition; the units of one repetition follow each other.
set -euo pipefail
folder=$1
compiler=$2
repeat=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

printf '#include <torch/torch.h>\n' >"$work/torch.cpp"
printf '#include <torch/torch.h>\n#include <pardl/ddp.hpp>\n' >"$work/ddp.cpp"

# user_seconds SOURCE PART
user_seconds() {
  local TIMEFORMAT=%U
  { time "$compiler" "@$folder/flags_$2.rsp" -c "$work/$1.cpp" -o "$work/unit.o" 2>"$work/errors"; } 2>&1 ||
    { cat "$work/errors" >&2; return 1; }
}

# The first compilation after a pause reads LibTorch's headers from the disk; user time hardly sees it, yet it is warmed.
"$compiler" "@$folder/flags_pardl.rsp" -fsyntax-only "$work/torch.cpp"
for part in pardl gloo nccl; do
  [ -e "$folder/flags_$part.rsp" ] || continue
  printf 'compile_time,cpp,%s-torch,1,%s,s,%s\n' "$part" "$(user_seconds torch "$part")" "$repeat"
  printf 'compile_time,cpp,%s-ddp,1,%s,s,%s\n' "$part" "$(user_seconds ddp "$part")" "$repeat"
done
