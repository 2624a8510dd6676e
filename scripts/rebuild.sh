#!/usr/bin/env bash
# Tables, figures or the report of one study, from the CSVs in results/ alone; or the overview of several, ACME beside
# its peers on all of them.
#
#   [PRESET=quick | STUDY=NAME] [RESULTS=results] [FIGURES=figures] scripts/rebuild.sh tables|figures|report
#   [STUDIES="short-float32 text digits"] [RESULTS=results] [FIGURES=figures] scripts/rebuild.sh overview
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
folder=${RESULTS:-results}/${STUDY:-${PRESET:-quick}}
arguments=(--results "${RESULTS:-results}" --study "${STUDY:-${PRESET:-quick}}" --out "${FIGURES:-figures}")
# A study may consist of the runs beside peers, or over gain, alone.
peers=0
gain=0
others=1
if [ -d "$folder/peers" ]; then peers=1; fi
if [ -d "$folder/gain" ] || [ -d "$folder/length" ] || [ -d "$folder/variants" ]; then gain=1; fi
if [ $((peers + gain)) != 0 ] && [ ! -d "$folder/table" ] && [ ! -d "$folder/lr" ]; then others=0; fi
case ${1:-} in
tables)
    if [ $peers = 1 ]; then "$PYTHON" scripts/make_peer_tables.py "${arguments[@]}"; fi
    if [ $gain = 1 ]; then "$PYTHON" scripts/make_gain_table.py "${arguments[@]}"; fi
    if [ -d "$folder/averages" ]; then "$PYTHON" scripts/make_averages_table.py "${arguments[@]}"; fi
    if [ $others = 1 ]; then "$PYTHON" scripts/make_tables.py "${arguments[@]}"; fi
    ;;
figures)
    if [ $others = 1 ]; then
        "$PYTHON" scripts/plot_curves.py "${arguments[@]}"
        "$PYTHON" scripts/plot_robustness.py "${arguments[@]}"
    fi
    if [ $peers = 1 ]; then "$PYTHON" scripts/plot_peers.py "${arguments[@]}"; fi
    ;;
report)
    "$PYTHON" scripts/make_report.py "${arguments[@]}"
    ;;
overview)
    read -ra studies <<<"${STUDIES:-short-float32 text digits}"
    "$PYTHON" scripts/peer_overview.py --results "${RESULTS:-results}" --out "${FIGURES:-figures}" --studies "${studies[@]}"
    ;;
*)
    echo "usage: scripts/rebuild.sh tables|figures|report|overview" >&2
    exit 2
    ;;
esac
