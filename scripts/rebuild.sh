#!/usr/bin/env bash
# Tables, figures or the report of one study, from the CSVs in results/ alone.
#
#   [PRESET=quick | STUDY=NAME] [RESULTS=results] [FIGURES=figures] scripts/rebuild.sh tables|figures|report
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
arguments=(--results "${RESULTS:-results}" --study "${STUDY:-${PRESET:-quick}}" --out "${FIGURES:-figures}")
case ${1:-} in
tables)
    "$PYTHON" scripts/make_tables.py "${arguments[@]}"
    ;;
figures)
    "$PYTHON" scripts/plot_curves.py "${arguments[@]}"
    "$PYTHON" scripts/plot_robustness.py "${arguments[@]}"
    ;;
report)
    "$PYTHON" scripts/make_report.py "${arguments[@]}"
    ;;
*)
    echo "usage: scripts/rebuild.sh tables|figures|report" >&2
    exit 2
    ;;
esac
