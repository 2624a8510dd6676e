#!/usr/bin/env bash
# What a preset's sweeps have done: finished, running, interrupted, failed, missing, and about how long is left.
#
#   [PRESET=smoke|quick|reduced|paper] [RESULTS=results] [STUDY=NAME] [SEEDS=…] [LR_SEEDS=…] scripts/status.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
export DRY_RUN=1
{
    scripts/sweep_table.sh
    scripts/sweep_lr.sh
    scripts/sweep_equal.sh
} | "$PYTHON" scripts/status.py
