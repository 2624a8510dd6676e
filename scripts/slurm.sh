# Sourced by `report` (sweep.sh): the sweep's list as one SLURM job array, a run a task.
#
# What the tasks need is said to sbatch in its own variables, for instance
#
#   SBATCH_PARTITION=gpu SBATCH_GRES=gpu:1 SBATCH_TIMELIMIT=04:00:00 PRESET=paper scripts/sweep_table.sh --slurm
#
# Submitting the same sweep again is harmless: finished runs end at once.

folder=$RESULTS/$STUDY/slurm
sweep=$(basename "$0" .sh)
mkdir -p "$folder"
printf '%s\n' "${commands[@]}" >"$folder/$sweep.list"
sbatch --array="0-$((${#commands[@]} - 1))" --job-name="$STUDY-$sweep" --output="$folder/$sweep.%a.log" \
    scripts/slurm_task.sh "$folder/$sweep.list"
