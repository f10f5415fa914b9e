#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Under torchrun a program is a rank of its agent: uses the agent's store, and leaves its error where torchrun looks.
# PARDL_TORCHRUN is torchrun's path.
source "$(dirname "$0")/../support/launch_checks.sh"
torchrun=${PARDL_TORCHRUN:-}
[ -x "$torchrun" ] || skip "PARDL_TORCHRUN does not name a torchrun"
run=("$torchrun" --no-python --standalone --nproc-per-node 2)

expect_code 0 "${run[@]}" "$worker" ranks
expect 1 "rank 0/2 local 0/2 nodes=1 backend=shm sum 3"
expect 1 "rank 1/2 local 1/2 nodes=1 backend=shm sum 3"

expect_code 0 "${run[@]}" "$worker" variables
expect 2 "TORCHELASTIC_USE_AGENT_STORE=True"

# The line that the rank prints itself, and the one in torchrun's summary, which comes from the error file.
expect_code nonzero "${run[@]}" "$worker" --timeout 20 throw 1
expect 1 '[launch] rank 1/2: std::runtime_error: the "reason" in two lines'
expect 1 'traceback : std::runtime_error: the "reason" in two lines'
grep -A8 "Root Cause" "$output" | grep -q "rank *: 1 " || { echo "FAILED: rank 1 is not the root cause"; cat "$output"; exit 1; }

expect_code 0 "${run[@]}" --max-restarts 2 "$worker" restart 1 2
expect 2 "restart 2"

# Inside a Slurm step of one task, torchrun is believed.
expect_code 0 env SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=1 "${run[@]}" "$worker" ranks
expect 2 "backend=shm sum 3"
echo "torchrun: all right"
