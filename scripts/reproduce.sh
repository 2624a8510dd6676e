#!/usr/bin/env bash
# The whole way from nothing to tables and figures; `make reproduce` calls it. Finished runs are kept.
#
#   [PRESET=smoke|quick|short|text|digits|small|reduced|paper] [DATA_DIR=DIR] [DRY_RUN=1] scripts/reproduce.sh
#
# Trains anew, into a folder of its own: RESULTS is reproduction/results, FIGURES reproduction/figures, unless
# set. (results/ holds committed runs, which would all be found finished.)
#
# PRESET is `paper` where CUDA is, else `quick`. Without CUDA as many runs at a time as the machine has cores, unless JOBS
# says how many: each run of a CPU's preset has one thread, so that numbers do not depend on the cores. Without the data and without a network the same is done with
# the built-in synthetic set, under a study name of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
if "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    PRESET=${PRESET:-paper}
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
runs=$((24 * $(wc -w <<<"$SEEDS") + 4 * $(wc -w <<<"$LRS") * $(wc -w <<<"$LR_SEEDS")))
cat <<TEXT
Reproducing ACME: preset $PRESET (for: $ABOUT)
  on       $device
  runs     $runs: 16 optimizers × seeds $SEEDS, the 8 without ACME for as many evaluations, and $(wc -w <<<"$LRS") initial step sizes × SGD, Adam × with, without ACME
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

# A failed run does not stop the others, nor the tables of what there is; the exit code tells.
status=0
scripts/sweep_table.sh || status=$?
if [ $status = 130 ]; then exit 130; fi
scripts/sweep_lr.sh || status=$?
if [ $status = 130 ]; then exit 130; fi
scripts/sweep_equal.sh || status=$?
if [ $status = 130 ]; then exit 130; fi
if [ "${DRY_RUN:-0}" = 0 ]; then
    scripts/rebuild.sh figures
    scripts/rebuild.sh report
    scripts/rebuild.sh tables # last: it prints the summary
    if [ -e "figures/$STUDY/table.md" ] && [ "$FIGURES" != figures ]; then
        echo "To compare with, of all seeds that are committed: figures/$STUDY/table.md, robustness.md; run by run: results/$STUDY"
    fi
fi
exit $status
