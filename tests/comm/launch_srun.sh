#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Under srun, in a private Slurm of one node: each task is a rank; a batch script is none.
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" != inside ]; then exec "$here/../support/slurm.sh" "$here/launch_srun.sh" inside; fi
source "$here/../support/launch_checks.sh"
cd /  # where every node has a folder of that name

expect_code 0 srun -n 2 "$worker" ranks
expect 1 "rank 0/2 local 0/2 nodes=1 backend=shm sum 3"
expect 1 "rank 1/2 local 1/2 nodes=1 backend=shm sum 3"

# In containers ranks share the network and the variables, but neither /tmp nor /dev/shm.
private=/dev/shm
[[ $worker == /tmp/* ]] || private="/dev/shm /tmp"
expect_code 0 srun -n 2 unshare --mount --ipc \
  sh -c 'for folder in '"$private"'; do mount -t tmpfs none $folder; done; exec "$0" "$@"' "$worker" ranks
expect 2 "nodes=1 backend=shm sum 3"

# A batch script carries SLURM_PROCID too: alone in it the program is a world of one, by srun a rank, and with --nproc
# a launcher.
batch=$(mktemp "${TMPDIR:-/tmp}/pardl-test-batch-XXXXXX")
trap 'rm -f "$output" "$batch" "$batch.out"' EXIT
printf '#!/bin/bash\necho "procid=$SLURM_PROCID"\n%q ranks\nsrun -n 2 %q ranks\n%q --nproc 2 ranks\n' "$worker" "$worker" "$worker" >"$batch"
expect_code 0 sbatch --wait -n 2 --output="$batch.out" "$batch"
cp "$batch.out" "$output"
expect 1 "procid=0"
expect 1 "backend=self sum 1"
expect 4 "backend=shm sum 3"
expect 1 "[1] rank 1/2"

# Two steps of one job, at once, do not meet.
printf '#!/bin/bash\nsrun --overlap -n 2 %q ranks & srun --overlap -n 2 %q ranks & wait\n' "$worker" "$worker" >"$batch"
expect_code 0 sbatch --wait -n 2 --output="$batch.out" "$batch"
cp "$batch.out" "$output"
expect 4 "backend=shm sum 3"

expect_code nonzero srun --kill-on-bad-exit=1 -n 2 "$worker" --timeout 20 throw 1
expect 1 '[launch] rank 1/2: std::runtime_error: the "reason" in two lines'

expect_code nonzero srun -n 2 env RANK=0 WORLD_SIZE=1 "$worker" ranks
expect 2 "RANK=0 WORLD_SIZE=1 contradicts Slurm"

expect_code 0 srun -n 1 "$worker" --nproc 2 ranks
expect 2 "backend=shm sum 3"
echo "srun: all right"
