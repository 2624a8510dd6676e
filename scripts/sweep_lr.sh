#!/usr/bin/env bash
# Robustness: SGD and Adam, each with and without ACME, from initial step sizes six decades apart.
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [LR_SEEDS="42 43"]  scripts/sweep_lr.sh [--slurm]
#
# See presets.sh for what a preset trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

for seed in $LR_SEEDS; do
    for lr in $LRS; do
        run "lr/sgd.lr$lr.seed$seed"       --seed "$seed" --lr "$lr"
        run "lr/sgd-acme.lr$lr.seed$seed"  --seed "$seed" --lr "$lr" --acme
        run "lr/adam.lr$lr.seed$seed"      --seed "$seed" --lr "$lr" --adam
        run "lr/adam-acme.lr$lr.seed$seed" --seed "$seed" --lr "$lr" --adam --acme
    done
done
report
