#!/usr/bin/env bash
# The 8 base optimizers without ACME, each for as many gradient evaluations as the table's run with ACME takes: twice
# the epochs, with ASAM one and a half times (rounded up).
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [SEEDS="42 43"]  scripts/sweep_equal.sh [--slurm]
#
# See presets.sh for what a preset trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

twice=$((2 * EPOCHS))
more=$(((3 * EPOCHS + 1) / 2))
for seed in $SEEDS; do
    run "equal/sgd.seed$seed"                --seed "$seed" --lr $SGD_LR --epochs $twice
    run "equal/sgd-nesterov.seed$seed"       --seed "$seed" --lr $SGD_LR --epochs $twice --nesterov
    run "equal/sgd-asam.seed$seed"           --seed "$seed" --lr $SGD_LR --epochs $more --asam
    run "equal/sgd-asam-nesterov.seed$seed"  --seed "$seed" --lr $SGD_LR --epochs $more --asam --nesterov
    run "equal/adam.seed$seed"               --seed "$seed" --lr $ADAM_LR --epochs $twice --adam
    run "equal/adam-nesterov.seed$seed"      --seed "$seed" --lr $ADAM_LR --epochs $twice --adam --nesterov
    run "equal/adam-asam.seed$seed"          --seed "$seed" --lr $ADAM_LR --epochs $more --adam --asam
    run "equal/adam-asam-nesterov.seed$seed" --seed "$seed" --lr $ADAM_LR --epochs $more --adam --asam --nesterov
done
report
