#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Under MPICH's mpiexec.hydra: ranks and places come from PMI, the meeting point from the user.
# PARDL_MPIEXEC is its path if it is not in PATH.
source "$(dirname "$0")/../support/launch_checks.sh"
mpiexec=${PARDL_MPIEXEC:-$(command -v mpiexec.hydra || true)}
[ -x "$mpiexec" ] || skip "mpiexec.hydra is not installed (apt-get install mpich)"
port=$(free_port)

expect_code 0 "$mpiexec" -n 2 -genv MASTER_ADDR 127.0.0.1 -genv MASTER_PORT "$port" "$worker" ranks
expect 1 "rank 0/2 local 0/2 nodes=1 backend=shm sum 3"
expect 1 "rank 1/2 local 1/2 nodes=1 backend=shm sum 3"

expect_code nonzero "$mpiexec" -n 2 "$worker" ranks
expect 2 "MPI (PMI) does not say where rank 0 is, and MASTER_ADDR is not set"
echo "mpich: all right"
