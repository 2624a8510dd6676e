#!/usr/bin/env bash
# A SLURM of this machine alone, for the tests: munged, slurmctld and slurmd, with all they write in FOLDER.
#
#   tests/scripts/slurm_cluster.sh start FOLDER    then set SLURM_CONF=FOLDER/slurm.conf
#   tests/scripts/slurm_cluster.sh stop FOLDER
#
# Needs root and Debian's slurm-wlm and munge; leaves /etc and a cluster that is there already alone.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

folder=$(readlink -f "$2")
case $1 in
start)
    port=$((20000 + $$ % 10000))
    cores=$(nproc)
    mkdir -p "$folder"/{munge,state,spool}
    chmod 755 "$folder/munge" # munged insists on that much, and no more
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 10000))
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits (two minutes by default)
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" \
        --pid-file "$folder/munged.pid" --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld
    slurmd
    for _ in $(seq 100); do
        if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then exit 0; fi
        sleep 0.2
    done
    echo "the node did not become idle:" >&2
    for log in "$folder"/slurm*.log "$folder/munge/log"; do tail -n 5 "$log" >&2; done
    "$0" stop "$folder"
    exit 1
    ;;
stop)
    export SLURM_CONF=$folder/slurm.conf
    if [ -n "$(squeue --noheader 2>/dev/null)" ]; then
        scancel --user="$(id -un)" # what a test that failed left running
        sleep 2
    fi
    for daemon in slurmd slurmctld munged; do
        if [ -e "$folder/$daemon.pid" ]; then kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true; fi
    done
    ;;
*)
    echo "usage: $0 start|stop FOLDER" >&2
    exit 2
    ;;
esac
