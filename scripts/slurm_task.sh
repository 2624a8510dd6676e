#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
#
# One task of a sweep's job array: the run in line SLURM_ARRAY_TASK_ID (from 0) of the list. sbatch calls it; see
# slurm.sh. A minute before the time limit the run is told to stop, and queued again: its next slot goes on from the
# last finished epoch. The same after a preemption, or a node that dies.
set -u

command=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1")
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then command="$command --threads $SLURM_CPUS_PER_TASK"; fi
cut_off=0
trap 'cut_off=1; kill -TERM "$pid" 2>/dev/null' TERM

while true; do
    eval "exec $command" &
    pid=$!
    wait "$pid"
    status=$?
    while kill -0 "$pid" 2>/dev/null; do # the trap ended the wait, not the run
        wait "$pid"
        status=$?
    done
    # 75: another process trains this run; it may die before it is finished
    if [ $status != 75 ] || [ $cut_off != 0 ]; then break; fi
    sleep "${RETRY_S:-60}" &
    wait $!
done
if [ $cut_off != 0 ] && [ $status != 0 ]; then
    echo "cut off: queued again"
    exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit $status
