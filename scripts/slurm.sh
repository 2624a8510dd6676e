# Sourced by `report` (sweep.sh): the sweep's list as one SLURM job array, a run a task.
#
# What the tasks need is said to sbatch, after --slurm or in its own variables:
#
#   PRESET=paper scripts/sweep_table.sh --slurm --partition=gpu --gres=gpu:1 --time=04:00:00
#   SBATCH_PARTITION=gpu SBATCH_GRES=gpu:1 SBATCH_TIMELIMIT=04:00:00 PRESET=paper scripts/sweep_table.sh --slurm
#
# Without a time limit of yours it is the preset's; a run that needs longer takes several slots (slurm_task.sh).
# JOBS=n, if set, is the number of tasks at a time. Submitting the same sweep again is harmless.

folder=$RESULTS/$STUDY/slurm
sweep=$(basename "$0" .sh)
list=
for number in "${!names[@]}"; do
    log=$RESULTS/$STUDY/${names[number]}.log
    mkdir -p "$(dirname "$log")"
    list+="$(printf %q "$log") ${commands[number]}"$'\n'
done
mkdir -p "$folder"
# Named after what is in it: tasks that are still queued read the list they were submitted with.
path=$folder/$sweep.$(cksum <<<"$list" | cut -d' ' -f1).list
printf %s "$list" >"$path.$$" && mv "$path.$$" "$path"
sbatch --array="0-$((${#commands[@]} - 1))${AT_ONCE:+%$AT_ONCE}" --job-name="$STUDY-$sweep" \
    --output="$folder/$sweep.%A_%a.log" --time="${SBATCH_TIMELIMIT:-$TIME_LIMIT}" "${sbatch_options[@]}" \
    scripts/slurm_task.sh "$path"
