#!/usr/bin/env bash
# What `gain`, `adapt_steps` and `search_steps` are worth: ACME with a larger step, looking ahead in every step or in
# the first 60, with a search for the start or without, from starts six decades apart, beside SGD from the learning rates
# around its best; with Adam, with unbiased squares; some with averaged weights in place of annealing. Half: for half
# the epochs, which takes as many evaluations as SGD.
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [PEER_SEEDS="42 43"]  scripts/sweep_gain.sh [--slurm]
#
# The same images and held-out images as sweep_peers.sh. See presets.sh for what a preset trains. Finished runs are
# skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--validation "$PEER_VALIDATION")
half=$(((EPOCHS + 1) / 2))
for seed in $PEER_SEEDS; do
    acme() { # BASE GAIN STEPS SEARCH LR [averaged: weights, in place of annealing]; STEPS of 0: all
        local steps=throughout search= name=$1-acme options=(--seed "$seed" --lr "$5" --acme --gain "$2")
        if [ "$3" != 0 ]; then steps=kept$3 options+=(--adapt-steps "$3"); fi
        if [ "$1" = adam ]; then name+=-unbiased options+=(--adam --unbiased-squares); fi
        if [ "$4" != 0 ]; then search=.search$4 options+=(--search-steps "$4"); fi
        if [ -n "${6:-}" ]; then search+=.$6 options+=(--no-annealing --average-weights); fi
        run "gain/$name.gain$2.$steps$search.lr$5.seed$seed" "${options[@]}"
    }
    for lr in 1 3 10; do
        run "gain/sgd.lr$lr.seed$seed" --seed "$seed" --lr $lr
    done
    for lr in 0.1 100 0.0001; do
        acme sgd 3 60 20 $lr
    done
    for gain in 1 1.5 2 3 4; do
        for lr in 0.001 1 0.000001; do
            acme adam $gain 60 20 $lr
        done
    done
    for gain in 1 3; do
        acme sgd $gain 60 20 0.1 averaged
        acme adam $gain 60 20 0.001 averaged
    done
    for lr in 0.1 10 0.001 100 0.0001; do
        acme sgd 3 60 0 $lr
    done
    acme sgd 1 60 0 0.1
    acme sgd 3 0 0 0.1
    acme sgd 3 0 0 10
    run "gain/sgd-acme-half.gain3.throughout.lr0.1.seed$seed" --seed "$seed" --lr 0.1 --acme --gain 3 --epochs $half
done
report
