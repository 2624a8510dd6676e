#!/usr/bin/env bash
# Tables, figures or the report of one study, from the CSVs in results/ alone; or the overview of several, ACME beside
# its peers on all of them.
#
#   [PRESET=quick | STUDY=NAME] [RESULTS=results] [FIGURES=figures] scripts/rebuild.sh tables|figures|report
#   [STUDIES="short-float32 text digits"] [RESULTS=results] [FIGURES=figures] scripts/rebuild.sh overview
. "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

case ${1:-} in
tables | figures | report) of=(--study "${STUDY:-${PRESET:-quick}}") ;;
overview) read -ra of <<<"--study ${STUDIES:-short-float32 text digits}" ;;
*)
    echo "usage: scripts/rebuild.sh tables|figures|report|overview" >&2
    exit 2
    ;;
esac
exec "$PYTHON" "scripts/make_$1.py" --results "${RESULTS:-results}" --out "${FIGURES:-figures}" "${of[@]}"
