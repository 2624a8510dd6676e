#!/usr/bin/env bash
# What a preset's sweeps have done: finished, running, interrupted, failed, missing, and about how long is left.
# Sweeps that are not the preset's own are looked at once they have begun.
#
#   [PRESET=quick] [RESULTS=results] [STUDY=NAME] [SEEDS=…] [LR_SEEDS=…] [PEER_SEEDS=…] scripts/status.sh
. "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
set -euo pipefail
. scripts/presets.sh

sweeps=$SWEEPS
for script in scripts/sweep_*.sh; do
    more=${script#scripts/sweep_} more=${more%.sh}
    if [[ " $sweeps " != *" $more "* ]] && [ -d "${RESULTS:-results}/$STUDY/$more" ]; then sweeps="$sweeps $more"; fi
done
export DRY_RUN=1
for sweep in $sweeps; do
    "scripts/sweep_$sweep.sh"
done | "$PYTHON" scripts/status.py
