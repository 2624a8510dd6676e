# Sourced by the sweeps: `run NAME OPTION…` trains one run, `report` ends the sweep.
#
# A run leaves $RESULTS/$STUDY/NAME.csv, .json and, of what it printed, .log. --resume makes the training script
# skip a finished run and go on with an interrupted one, so the same sweep can be started again at any time, and
# several times at once: a run that another process trains, here or on a machine that shares the folder, is left to
# it and asked for again at the end.
#
#   JOBS=n     runs at a time (1): each on a GPU of its own as far as there are GPUs
#   SLURM=1    submit the list as a SLURM job array instead (see slurm.sh); --slurm [OPTION…] says the same, with
#              options for sbatch
#   DRY_RUN=1  print the commands, one a line

. "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
. scripts/presets.sh || exit

RESULTS=${RESULTS:-results}
AT_ONCE=${JOBS:-} # of a job array: all, unless said
JOBS=${JOBS:-1}
sbatch_options=()
case "${1:-}" in
'') ;;
--slurm)
    SLURM=1
    sbatch_options=("${@:2}")
    ;;
*)
    echo "usage: $0 [--slurm [OPTION OF sbatch…]]" >&2
    exit 2
    ;;
esac
case $JOBS in
'' | *[!0-9]* | 0)
    echo "JOBS=$JOBS: expected a whole number of at least 1." >&2
    exit 2
    ;;
esac

TAKEN_ELSEWHERE=75 # exit code of the training script
names=()           # of all runs, in their order
commands=()        # the same, quoted for the shell
pids=()            # by place: the process of the run there, or nothing
places=()          # by place: the number of the run there
elsewhere=()       # numbers of runs
began=()           # by number: when, in seconds
took=()            # by number: how many
outcomes=()        # by number: how it ended
finished=0
failed=0

gpus=()
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    case $CUDA_VISIBLE_DEVICES in
    '' | -1 | NoDevFiles) ;; # none; the last is SLURM's word for it
    *) IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES" ;;
    esac
elif command -v nvidia-smi >/dev/null; then
    while read -r gpu; do gpus+=("$gpu"); done < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
fi

stopped() {
    trap '' INT TERM
    local pid
    for pid in "${pids[@]}"; do
        if [ -n "$pid" ]; then kill -TERM "$pid" 2>/dev/null; fi
    done
    wait
    echo "Stopped. The same command continues." >&2
    exit 130
}
trap stopped INT TERM

run() {
    local name=$1
    shift
    local command=("$PYTHON" icassp25/cifar100.acme.py --resume --output "$RESULTS/$STUDY/$name.csv"
        "${OPTIONS[@]}" "$@")
    names+=("$name")
    commands+=("$(printf '%q ' "${command[@]}")")
}

# Start run number $1 as soon as there is a place.
start() {
    local place number=$1
    while true; do
        for ((place = 0; place < JOBS; place++)); do
            if [ -z "${pids[place]:-}" ]; then break 2; fi
        done
        look_after
    done
    local log="$RESULTS/$STUDY/${names[number]}.log"
    mkdir -p "$(dirname "$log")"
    (
        trap - INT TERM
        if [ ${#gpus[@]} != 0 ]; then export CUDA_VISIBLE_DEVICES=${gpus[place % ${#gpus[@]}]}; fi
        eval "exec ${commands[number]}"
    ) >>"$log" 2>&1 &
    pids[place]=$!
    places[place]=$number
    began[number]=$SECONDS
}

# Wait a moment, and say how the runs fared that have ended.
look_after() {
    local place status
    sleep 0.1
    for ((place = 0; place < JOBS; place++)); do
        if [ -z "${pids[place]:-}" ] || kill -0 "${pids[place]}" 2>/dev/null; then continue; fi
        status=0
        wait "${pids[place]}" || status=$?
        pids[place]=
        ended "${places[place]}" "$status"
    done
}

ended() {
    local number=$1 status=$2
    local name=${names[number]} log="$RESULTS/$STUDY/${names[number]}.log" words
    case $status in
    0)
        finished=$((finished + 1))
        words=$(tail -n 1 "$log")
        outcomes[number]=${words%[,:] *"$RESULTS"*} # its CSV is known from its name
        outcomes[number]=${outcomes[number]/already finished/finished earlier}
        echo "[$finished/${#names[@]}] $STUDY/$name: $words"
        ;;
    "$TAKEN_ELSEWHERE")
        elsewhere+=("$number")
        ;;
    130) # the run was interrupted: so is the sweep
        stopped
        ;;
    *)
        failed=$((failed + 1))
        outcomes[number]="FAILED (exit code $status), see $log"
        echo "== $STUDY/$name FAILED (exit code $status); the end of $log:" >&2
        tail -n 5 "$log" | sed 's/^/   /' >&2
        ;;
    esac
    took[number]=$((SECONDS - began[number]))
}

train() {
    local number
    for number in "$@"; do start "$number"; done
    while [ -n "$(printf %s "${pids[@]}")" ]; do look_after; done
}

report() {
    local waiting
    if [ "${DRY_RUN:-0}" != 0 ]; then
        printf '%s\n' "${commands[@]}"
        return
    fi
    if [ "${SLURM:-0}" != 0 ]; then
        . scripts/slurm.sh
        return
    fi
    train "${!names[@]}"
    while [ ${#elsewhere[@]} != 0 ]; do
        waiting=("${elsewhere[@]}")
        elsewhere=()
        echo "== waiting for ${#waiting[@]} runs that other processes train"
        sleep "${RETRY_S:-10}"
        train "${waiting[@]}"
    done
    local number width=0
    for number in "${!names[@]}"; do
        if [ ${#names[number]} -gt $width ]; then width=${#names[number]}; fi
    done
    printf '\n%-*s  %7s  %s\n' "$width" run seconds outcome
    for number in "${!names[@]}"; do
        printf '%-*s  %7d  %s\n' "$width" "${names[number]}" "${took[number]}" "${outcomes[number]}"
    done
    echo "== $STUDY: $finished of ${#names[@]} runs done, $failed failed"
    if [ $failed != 0 ]; then exit 1; fi
}
