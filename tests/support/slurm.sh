#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# slurm.sh COMMAND…: runs COMMAND beside a private Slurm of one node, which lives on loopback and in a temporary folder
# and is gone afterwards. Inside, srun, sbatch and salloc just work. Ends with COMMAND's code; 77 where Slurm is missing.
set -euo pipefail

skip() {
  echo "skipped: $1"
  exit 77
}
PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd srun sinfo; do
  command -v $program >/dev/null || skip "$program is not installed (apt-get install slurm-wlm)"
done
[ "$(id -u)" = 0 ] || skip "a private slurmd needs root"

folder=$(mktemp -d "${TMPDIR:-/tmp}/pardl-test-slurm-XXXXXX")
within() {  # within SECONDS COMMAND…: until COMMAND succeeds
  local left=$(($1 * 10))
  shift
  until "$@" >/dev/null 2>&1; do
    ((left-- > 0)) || return 1
    sleep 0.1
  done
}
is_idle() { sinfo --noheader --format=%T | grep -qx idle; }
has_ended() { ! kill -0 "$1"; }

daemons=()  # the last one started first
cleanup() {
  # A step's own daemon leaves last, and needs all the others for it.
  if [ ${#daemons[@]} = 3 ]; then
    scancel --user=root >/dev/null 2>&1 || true
    within 20 is_idle || true
  fi
  local daemon
  for daemon in "${daemons[@]}"; do
    kill "$daemon" 2>/dev/null || true
    within 10 has_ended "$daemon" || kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  done
  rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Two ports that are free now, told apart from those of another run of this script.
read -r control_port node_port < <(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)

chmod 755 "$folder"
mkdir "$folder/state" "$folder/spool"
# Eight processors, whatever there are: ranks of a test may share one.
cat >"$folder/slurm.conf" <<CONF
ClusterName=pardl
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE State=UP
CONF
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$folder/cgroup.conf"
export SLURM_CONF=$folder/slurm.conf

dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
chmod 400 "$folder/munge.key"
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" --log-file="$folder/munged.log" \
  >"$folder/munged.out" 2>&1 &
daemons=($! "${daemons[@]}")
trouble() {
  echo "the private Slurm did not come up; its logs:"
  tail -n 20 "$folder"/*.log "$folder"/*.out
  exit 1
}
within 20 test -S "$folder/munge.socket" || trouble
slurmctld -D -f "$SLURM_CONF" >"$folder/slurmctld.out" 2>&1 &
daemons=($! "${daemons[@]}")
slurmd -D -N node1 -f "$SLURM_CONF" >"$folder/slurmd.out" 2>&1 &
daemons=($! "${daemons[@]}")
within 60 is_idle || trouble

code=0
"$@" || code=$?
exit $code
