#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# torchrun on two hosts: every rank counts two nodes, its own place right, and the sum goes over the wire.
# PARDL_TORCHRUN is torchrun's path.
source "$(dirname "$0")/../support/launch_checks.sh"
torchrun=${PARDL_TORCHRUN:-}
[ -x "$torchrun" ] || skip "PARDL_TORCHRUN does not name a torchrun"
two_hosts=$(cd "$(dirname "$0")/../support" && pwd)/two_hosts.sh
"$two_hosts" true || skip "two hosts cannot be made here"

# shellcheck disable=SC2016
expect_code 0 "$two_hosts" bash -c 'exec "$0" --no-python --nnodes 2 --node-rank "$HOST" --nproc-per-node 2 \
  --rdzv-backend c10d --rdzv-id pardl --rdzv-endpoint "$HOST0:29400" "$1" ranks' "$torchrun" "$worker"
for rank in 0 1 2 3; do expect 1 "rank $rank/4 local $((rank % 2))/2 nodes=2 backend=gloo sum 10"; done

# The older way, in which rank 0 serves the store itself.
# shellcheck disable=SC2016
expect_code 0 "$two_hosts" bash -c 'exec "$0" --no-python --nnodes 2 --node-rank "$HOST" --nproc-per-node 1 \
  --master-addr "$HOST0" --master-port 29411 "$1" ranks' "$torchrun" "$worker"
for rank in 0 1; do expect 1 "rank $rank/2 local 0/1 nodes=2 backend=gloo sum 3"; done

# By hand, without any launcher, as a job script of another queueing system would.
# shellcheck disable=SC2016
expect_code 0 "$two_hosts" bash -c 'RANK=$HOST WORLD_SIZE=2 MASTER_ADDR=$HOST0 MASTER_PORT=29422 exec "$0" ranks' "$worker"
for rank in 0 1; do expect 1 "rank $rank/2 local 0/1 nodes=2 backend=gloo sum 3"; done
echo "two hosts: all right"
