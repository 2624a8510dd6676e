#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
#
# One task of a sweep's job array: the run in line SLURM_ARRAY_TASK_ID (from 0) of the list. sbatch calls it; see
# slurm.sh. A minute before the time limit the run is told to stop, and queued again: its next slot goes on from the
# last finished epoch. The same after a preemption, or a node that dies. What the run prints is in its own log.
set -u

task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
eval "set -- $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1")"
log=$1
shift
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then set -- "$@" --threads "$SLURM_CPUS_PER_TASK"; fi

pid=
cut_off=0
stop() {
    cut_off=1
    if [ -n "$pid" ]; then kill -TERM "$pid" 2>/dev/null; fi
}
trap stop TERM
"$@" >>"$log" 2>&1 &
pid=$!
if [ $cut_off != 0 ]; then stop; fi
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done # a signal ends the wait, not the run
wait "$pid"
status=$?

queue_again() {
    echo "$1: queued again"
    exec scontrol requeue "$task"
}

if [ $status = 0 ]; then
    tail -n 1 "$log"
elif [ $status = 75 ]; then
    queue_again "another process trains this run" # and may die before it is finished
elif [ $cut_off != 0 ] && [ "$(squeue --noheader --jobs "$task" --format=%T)" = RUNNING ]; then # not cancelled
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ] || grep -qE '^ *[0-9]+ ' "$log"; then queue_again "cut off"; fi
    echo "cut off before its first epoch in ${SLURM_RESTART_COUNT} slots and once more: they are too short (--time)"
fi
if [ $status != 0 ]; then
    echo "FAILED (exit code $status); the end of $log:"
    tail -n 5 "$log" | sed 's/^/   /'
fi
exit $status
