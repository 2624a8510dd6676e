# Sourced by the sweeps: `run NAME OPTION…` trains one run, `report` ends the sweep.
#
# A run leaves $RESULTS/$STUDY/NAME.csv. --resume makes the training script skip a finished run and go on
# with an interrupted one, so the same sweep can be started again at any time. DRY_RUN=1 prints the commands.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
. scripts/presets.sh

RESULTS=${RESULTS:-results}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
runs=0
failed=()

stopped() {
    echo "Stopped. The same command continues." >&2
    exit 130
}
trap stopped INT

run() {
    local name=$1 status=0
    shift
    local command=("$PYTHON" icassp25/cifar100.acme.py --resume --output "$RESULTS/$STUDY/$name.csv"
        "${OPTIONS[@]}" "$@")
    if [ "${DRY_RUN:-0}" != 0 ]; then
        printf '%q ' "${command[@]}"
        echo
        return
    fi
    runs=$((runs + 1))
    echo "== $STUDY/$name"
    "${command[@]}" || status=$?
    if [ $status = 130 ]; then stopped; fi # the run was interrupted: so is the sweep
    if [ $status != 0 ]; then
        echo "== $STUDY/$name FAILED (exit code $status)" >&2
        failed+=("$name")
    fi
}

report() {
    if [ "${DRY_RUN:-0}" != 0 ]; then return; fi
    echo "== $STUDY: $((runs - ${#failed[@]})) of $runs runs done"
    if [ ${#failed[@]} = 0 ]; then return; fi
    printf '== FAILED: %s\n' "${failed[@]}" >&2
    exit 1
}
