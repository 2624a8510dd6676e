#!/usr/bin/env bash
# Variants of ACME that were tried (research/), with a step size that is kept, beside what is in acme/: same options,
# seeds and images.
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [PEER_SEEDS="42 43"]  scripts/sweep_variants.sh [--slurm]
#
# See presets.sh for what a preset trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--validation "$PEER_VALIDATION" "${KEPT[@]}")
for seed in $PEER_SEEDS; do
    for base in sgd adam; do
        case $base in
        sgd) start=(--lr 0.1) own=() ;;
        adam) start=(--lr 0.001 --adam) own=(uncorrected) ;; # SGD has nothing to correct
        esac
        run "variants/$base-kept.seed$seed" --seed "$seed" "${start[@]}"
        for variant in every averaged unlimited other_batch "${own[@]}"; do
            run "variants/$base-kept-$variant.seed$seed" --seed "$seed" "${start[@]}" --acme-script research.$variant
        done
    done
    for variant in every averaged; do
        run "variants/adam-kept-unbiased-$variant.seed$seed" --seed "$seed" --lr 0.001 --adam --unbiased-squares \
            --acme-script research.$variant
    done
    for lr in 1 0.000001; do # what did best, from other starts
        run "variants/adam-kept-unbiased-averaged.lr$lr.seed$seed" --seed "$seed" --lr $lr --adam --unbiased-squares \
            --acme-script research.averaged
    done
done
report
