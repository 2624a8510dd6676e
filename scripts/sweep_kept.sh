#!/usr/bin/env bash
# ACME that keeps its step size after 60 steps, with three gains, from three starts and with averaged weights, beside
# optimizers whose learning rate somebody has tuned or a learning rate finder has found (docs/find_lr.md).
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [SEEDS="42 43"]  scripts/sweep_kept.sh [--slurm]
#
# Schedule-free needs its package: pip install '.[peers]'. See presets.sh for what a preset trains. Finished runs are
# skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

kept=(--acme --adapt-steps 60 --search-steps 20)
averaged=(--anneal-over 1.5 --average-weights)
for seed in $SEEDS; do
    for lr in 10 3 1 30; do
        run "kept/sgd.lr$lr.seed$seed" --seed "$seed" --lr $lr
    done
    for gain in 2 1 4; do
        run "kept/sgd-acme-kept.gain$gain.lr0.1.seed$seed"             --seed "$seed" --lr 0.1 "${kept[@]}" --gain $gain
        run "kept/adam-acme-kept-unbiased.gain$gain.lr0.001.seed$seed" --seed "$seed" --lr 0.001 --adam "${kept[@]}" --gain $gain --unbiased-squares
    done
    run "kept/sgd-acme-kept-averaged.gain2.lr0.1.seed$seed"    --seed "$seed" --lr 0.1 "${kept[@]}" --gain 2 "${averaged[@]}"
    run "kept/adam-acme-kept-averaged.gain2.lr0.001.seed$seed" --seed "$seed" --lr 0.001 --adam "${kept[@]}" --gain 2 --unbiased-squares "${averaged[@]}"
    for lr in 0.01 0.003 0.03; do
        run "kept/adam.lr$lr.seed$seed" --seed "$seed" --lr $lr --adam
    done
    run "kept/schedulefree-sgd.lr10.seed$seed"      --seed "$seed" --lr 10 --optimizer schedulefree-sgd
    run "kept/schedulefree-adamw.lr0.025.seed$seed" --seed "$seed" --lr 0.025 --optimizer schedulefree-adamw
    for lr in 0.0001 100; do
        run "kept/sgd-acme-kept.gain2.lr$lr.seed$seed"           --seed "$seed" --lr $lr "${kept[@]}" --gain 2
        run "kept/adam-acme-kept-unbiased.gain2.lr$lr.seed$seed" --seed "$seed" --lr $lr --adam "${kept[@]}" --gain 2 --unbiased-squares
    done
    # What benchmarks/find_lr.py found for WRN 4-1: ACME, steepest descent, valley, path. SGD's rates are ten times torch's.
    for lr in 5.393 15.56 0.1024 8.274; do
        run "find_lr/sgd.lr$lr.seed$seed" --seed "$seed" --lr $lr
    done
    for lr in 0.01262 0.01024 0.0002984 0.00581; do
        run "find_lr/adam.lr$lr.seed$seed" --seed "$seed" --lr $lr --adam
    done
done
report
