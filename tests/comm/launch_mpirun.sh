#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Under Open MPI's mpirun: ranks on one host meet in the job's folder, without a word from the user.
source "$(dirname "$0")/../support/launch_checks.sh"
command -v mpirun >/dev/null || skip "mpirun is not installed (apt-get install openmpi-bin)"
mpirun --version | grep -q "Open MPI" || skip "this mpirun is not Open MPI's"
run=(mpirun --oversubscribe -n 3)
[ "$(id -u)" != 0 ] || run+=(--allow-run-as-root)

expect_code 0 "${run[@]}" "$worker" ranks
for rank in 0 1 2; do expect 1 "rank $rank/3 local $rank/3 nodes=1 backend=shm sum 6"; done

# Two programs one after the other in one job.
expect_code 0 "${run[@]}" sh -c '"$0" --timeout 20 ranks && "$0" --timeout 20 ranks' "$worker"
expect 6 "sum 6"

# Two jobs at once do not meet.
timeout 150 "${run[@]}" "$worker" ranks >/dev/null 2>&1 </dev/null &
expect_code 0 "${run[@]}" "$worker" ranks
expect 3 "sum 6"
wait $! || { echo "FAILED: the job beside this one"; exit 1; }

expect_code 1 "${run[@]}" "$worker" --timeout 20 throw 1
expect 1 '[launch] rank 1/3: std::runtime_error: the "reason" in two lines'

expect_code 2 "${run[@]}" "$worker" --nproc 2 ranks
grep -q -- "--nproc asks for ranks, but Open MPI has started this one" "$output" || { cat "$output"; exit 1; }

# One task is a way to get a machine: it may start ranks of its own.
run[3]=1
expect_code 0 "${run[@]}" "$worker" --nproc 2 ranks
expect 2 "backend=shm sum 3"
echo "mpirun: all right"
