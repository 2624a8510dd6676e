#!/usr/bin/env bash
# What `gain` and `adapt_every` are worth: ACME with a larger step, looking ahead in every step or rarely, from starts
# six decades apart, beside SGD from the learning rates around its best. Half: for half the epochs, which takes as many
# evaluations as SGD.
#
#   PRESET=smoke|quick|short|text|digits|reduced|paper  [DRY_RUN=1] [JOBS=n] [PEER_SEEDS="42 43"]  scripts/sweep_gain.sh [--slurm]
#
# The same images and held-out images as sweep_peers.sh. See presets.sh for what a preset trains. Finished runs are
# skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--validation "$PEER_VALIDATION")
half=$(((EPOCHS + 1) / 2))
for seed in $PEER_SEEDS; do
    for lr in 1 3 10; do
        run "gain/sgd.lr$lr.seed$seed" --seed "$seed" --lr $lr
    done
    run "gain/sgd-acme-half.gain3.every1.lr0.1.seed$seed" --seed "$seed" --lr 0.1 --acme --gain 3 --epochs $half
    for gain in 3 1 6; do
        for every in 10 1; do
            for lr in 0.1 10 0.001 100 0.0001; do
                run "gain/sgd-acme.gain$gain.every$every.lr$lr.seed$seed" --seed "$seed" --lr $lr --acme --gain $gain --adapt-every $every
            done
        done
    done
    for lr in 0.001 0.1; do
        for gain in 2 1; do
            run "gain/adam-acme.gain$gain.every10.lr$lr.seed$seed" --seed "$seed" --lr $lr --adam --acme --gain $gain --adapt-every 10
        done
    done
done
report
