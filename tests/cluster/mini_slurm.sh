#!/usr/bin/env bash
# A throw-away SLURM with two nodes on this host, for tests. Needs root, slurm-wlm and munge.
#   mini_slurm.sh up DIR       start munged, slurmctld and slurmd n1, n2; then export SLURM_CONF=DIR/slurm.conf
#   mini_slurm.sh down DIR     stop exactly the processes that `up` started
#   mini_slurm.sh status DIR
#   mini_slurm.sh start DIR NODE    start the slurmd of a node again, after a test killed it
# Environment: MINI_SLURM_PORT (17000) first of three ports, MINI_SLURM_CPUS (2) CPUs per node,
# MINI_SLURM_KILL_WAIT (5) seconds between TERM and KILL; SLURM's own default is 30.
set -euo pipefail

command=${1:?up, down, start or status}
folder=${2:?a folder}
port=${MINI_SLURM_PORT:-17000}
cpus=${MINI_SLURM_CPUS:-2}
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

write_config() {
  mkdir -p "$folder"/{munge,state,log,run,spool.n1,spool.n2}
  # munged refuses a socket folder that others could write to, and clients must be able to enter it.
  chmod 755 "$folder" "$folder/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/munge.key")
  : >"$folder/plugstack.conf"
  echo "CgroupPlugin=autodetect" >"$folder/cgroup.conf"
  # cred_expire: a requeued job otherwise waits two minutes for its old credential to expire.
  # config_overrides: two nodes of $cpus CPUs may be more than this host has.
  cat >"$SLURM_CONF" <<CONFIG
ClusterName=mini
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CryptoType=crypto/munge
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
PlugStackConfig=$folder/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=${MINI_SLURM_KILL_WAIT:-5}
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=15
MessageTimeout=20
PropagateResourceLimits=NONE
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=$cpus Sockets=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONFIG
}

up() {
  [[ $EUID == 0 ]] || { echo "mini_slurm: needs root" >&2; exit 1; }
  write_config
  # --force: the key and socket lie in a test folder, below world-writable /tmp.
  munged --force --num-threads=2 --key-file="$folder/munge/munge.key" \
    --socket="$folder/munge/socket" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  local idle
  for _ in $(seq 120); do
    idle=$(sinfo -h -N -o '%t' 2>/dev/null | grep -c '^idle$' || true)
    [[ $idle == 2 ]] && return
    sleep 0.25
  done
  sinfo -N -l >&2 || true
  tail -n 20 "$folder"/log/*.log >&2
  echo "mini_slurm: $idle of 2 nodes idle after 30 s" >&2
  exit 1
}

down() {
  local file pid
  for file in "$folder"/run/slurmd.*.pid "$folder/run/slurmctld.pid" "$folder/run/munged.pid"; do
    [[ -s $file ]] || continue
    pid=$(<"$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
  done
}

case $command in
  up) up ;;
  down) down ;;
  start) slurmd -N "${3:?n1 or n2}" ;;
  status) sinfo -N -l && squeue -l ;;
  *) echo "mini_slurm: up, down, start or status, not $command" >&2; exit 1 ;;
esac
