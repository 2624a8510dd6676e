#!/usr/bin/env bash
# Does the best gain depend on the length of the training? SGD from two learning rates and ACME as published, with a
# step size that is kept at five gains, and with averaged weights, in place of annealing or beside some of it, for 4, 16 and 60
# epochs of the same 11 200 images.
#
#   PRESET=smoke|quick|short|reduced|paper  [DRY_RUN=1] [JOBS=n] [SEEDS="42 43"]  scripts/sweep_length.sh [--slurm]
#
# Model, batch and precision are the preset's. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--train-images 11200)
for seed in $SEEDS; do
    for epochs in 4 16 60; do
        for lr in 3 10; do
            run "length/sgd.lr$lr.epochs$epochs.seed$seed" --seed "$seed" --epochs $epochs --lr $lr
        done
        for gain in 2 1 4 1.5 3; do
            run "length/sgd-acme-kept.gain$gain.epochs$epochs.seed$seed" --seed "$seed" --epochs $epochs --lr 0.1 --acme \
                --gain $gain --adapt-steps 60 --search-steps 20
        done
        run "length/sgd-acme.published.epochs$epochs.seed$seed" --seed "$seed" --epochs $epochs --lr 0.1 --acme
        averaged=(--acme --gain 2 --adapt-steps 60 --search-steps 20 --average-weights)
        run "length/sgd-acme-kept.averaged.epochs$epochs.seed$seed" --seed "$seed" --epochs $epochs --lr 0.1 "${averaged[@]}" \
            --no-annealing
        run "length/sgd-acme-kept.partly.epochs$epochs.seed$seed"   --seed "$seed" --epochs $epochs --lr 0.1 "${averaged[@]}" \
            --anneal-over 1.5
    done
done
report
