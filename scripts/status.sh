#!/usr/bin/env bash
# What a preset's sweeps have done: finished, running, interrupted, failed, missing, and about how long is left.
# The runs beside peers, over gain, over the length, of variants and of averages are looked at once they have begun.
#
#   [PRESET=smoke|quick|short|text|digits|small|reduced|paper] [RESULTS=results] [STUDY=NAME] [SEEDS=…] [LR_SEEDS=…] [PEER_SEEDS=…]
#       scripts/status.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
. scripts/presets.sh
sweeps=$SWEEPS
for more in peers gain length variants averages; do
    if [[ " $sweeps " != *" $more "* ]] && [ -d "${RESULTS:-results}/$STUDY/$more" ]; then sweeps="$sweeps $more"; fi
done
export DRY_RUN=1
for sweep in $sweeps; do
    "scripts/sweep_$sweep.sh"
done | "$PYTHON" scripts/status.py
