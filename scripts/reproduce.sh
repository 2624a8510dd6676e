#!/usr/bin/env bash
# The whole way from nothing to tables and figures; `make reproduce` calls it. Finished runs are kept.
#
#   [PRESET=NAME] [SEEDS="42 43"] [JOBS=n] [DATA_DIR=DIR] [DRY_RUN=1] scripts/reproduce.sh
#
# Trains anew, into a folder of its own: RESULTS is reproduction/results, FIGURES reproduction/figures, unless
# set. (results/ holds committed runs, which would all be found finished.)
#
# What is not said: where CUDA is, PRESET is `reduced`, with one seed and three runs at a time, which take an H100 about
# an hour; else it is `quick`, with as many runs at a time as there are cores. Each of these has one thread, so that the
# numbers do not depend on the cores. Without the data and without a network the same is done with the built-in
# synthetic set, under a study name of its own.
. "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
set -euo pipefail

if "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    if [ -z "${PRESET:-}" ]; then
        PRESET=reduced
        export SEEDS=${SEEDS:-42} JOBS=${JOBS:-3}
    fi
else
    PRESET=${PRESET:-quick}
    export JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
fi
RESULTS=${RESULTS:-reproduction/results}
FIGURES=${FIGURES:-reproduction/figures}
export PYTHON PRESET RESULTS FIGURES

chosen=${PRECISION:-}
. scripts/presets.sh
{
    read -r device
    read -r emulated
} < <("$PYTHON" -c '
import torch
from icassp25.train import device_name, emulates_bfloat16
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
print(device_name(device))
print(emulates_bfloat16(device))')
instead=
if [ -z "$chosen" ] && [ "${PRECISION:-}" = bfloat16 ] && [ "$emulated" = True ]; then
    PRECISION=float32
    . scripts/presets.sh
    instead=" (no bfloat16 on this device; PRECISION=bfloat16 emulates it, several times slower)"
fi
export PRECISION
runs=$(for sweep in $SWEEPS; do DRY_RUN=1 "scripts/sweep_$sweep.sh"; done | wc -l)
cat <<TEXT
Reproducing ACME: preset $PRESET (for: $ABOUT)
  on       $device
  runs     $runs, ${JOBS:-1} at a time, of the sweeps $SWEEPS
  each     ${OPTIONS[*]}$instead
  into     $RESULTS/$STUDY, $FIGURES/$STUDY
TEXT

if [ "$DATASET" = cifar100 ]; then
    if ! "$PYTHON" -m icassp25.data ${DATA_DIR:+--data-dir "$DATA_DIR"}; then
        # A folder that was named and is wrong is a mistake to mend, not a reason to train on something else.
        if [ -n "${DATA_DIR:-}${CIFAR100_ROOT:-}" ]; then exit 2; fi
        echo
        echo "CIFAR-100 is neither here nor to be had: going on with the built-in SYNTHETIC images."
        echo "What they give says nothing about CIFAR-100; tables and figures say synthetic."
        echo
        unset STUDY
        export DATASET=synthetic
        . scripts/presets.sh
    fi
fi
export STUDY DATASET

# A failed run or product does not stop the others; the exit code tells.
status=0
for sweep in $SWEEPS; do
    "scripts/sweep_$sweep.sh" || status=$?
    if [ $status = 130 ]; then exit 130; fi
done
if [ "${DRY_RUN:-0}" = 0 ]; then
    for product in figures report tables; do # tables last: they print the summary
        scripts/rebuild.sh $product || status=$?
    done
    if [ -e "figures/$STUDY/table.md" ] && [ "$FIGURES" != figures ]; then
        echo "To compare with, of all seeds that are committed: figures/$STUDY/table.md, robustness.md; run by run: results/$STUDY"
    fi
fi
exit $status
