#!/usr/bin/env bash
# Variants of ACME that were tried (research/), with rare look-aheads, beside what is in acme/: same options, seeds and
# images.
#
#   PRESET=smoke|quick|short|reduced|paper  [DRY_RUN=1] [JOBS=n] [PEER_SEEDS="42 43"]  scripts/sweep_variants.sh [--slurm]
#
# See presets.sh for what a preset trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--validation "$PEER_VALIDATION" --lr 0.1 --acme --gain 2 --adapt-every 10 --search-steps 20)
for seed in $PEER_SEEDS; do
    run "peers/sgd-acme-rare.x1.seed$seed" --seed "$seed" # as in sweep_peers.sh
    for variant in steady averaged unlimited other_batch; do
        run "variants/$variant.seed$seed" --seed "$seed" --acme-script research.$variant
    done
done
report
