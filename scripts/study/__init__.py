"""From the runs of a study to its tables and figures, a step a module, each importing those above it:

titles         what each run is called and how it is drawn
runs           which files count, and which runs belong together
stats          means, differences, what a search for the scale gets
words          captions and notes
write          a table in Markdown, LaTeX, HTML and CSV
tables         of pairs, of starts, of options; beside_peers: of ACME and its peers; collect: all that a study has
looks          how figures look; pair_figures and peer_figures draw them

A study is a folder of `results/`, with a folder for each sweep. Everything comes from the runs' CSVs and JSONs; torch is
never imported. The scripts beside this package are thin; nothing imports them.
"""

import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # figures need no other; the one that a notebook names may not be installed
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for icassp25
