#!/usr/bin/env bash
# What `gain` and `adapt_steps` matter: ACME from its default step size, with a search for the start, adapted in the
# first 40, 60, 100 or 150 steps and kept from there on, with gains of 1, 2, 3 and 4; Adam with unbiased squares.
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [SEEDS="42 43"]  scripts/sweep_gain.sh [--slurm]
#
# The same images and held-out images as sweep_peers.sh, which uses what these choose. See presets.sh for what a preset
# trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--validation "$PEER_VALIDATION" --acme --search-steps 20)
for seed in $SEEDS; do
    for steps in 60 40 100 150; do
        for gain in 2 1 3 4; do
            kept=(--seed "$seed" --adapt-steps $steps --gain $gain)
            run "gain/sgd-acme-kept.steps$steps.gain$gain.seed$seed"           "${kept[@]}" --lr 0.1
            run "gain/adam-acme-kept-unbiased.steps$steps.gain$gain.seed$seed" "${kept[@]}" --lr 0.001 --adam --unbiased-squares
        done
    done
done
report
