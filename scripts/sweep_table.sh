#!/usr/bin/env bash
# The table: 8 base optimizers, each with and without ACME, for every seed.
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [SEEDS="42 43"]  scripts/sweep_table.sh [--slurm]
#
# See presets.sh for what a preset trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

for seed in $SEEDS; do
    run "table/sgd.seed$seed"                     --seed "$seed" --lr $SGD_LR
    run "table/sgd-acme.seed$seed"                --seed "$seed" --lr $SGD_LR --acme
    run "table/sgd-nesterov.seed$seed"            --seed "$seed" --lr $SGD_LR --nesterov
    run "table/sgd-nesterov-acme.seed$seed"       --seed "$seed" --lr $SGD_LR --nesterov --acme
    run "table/sgd-asam.seed$seed"                --seed "$seed" --lr $SGD_LR --asam
    run "table/sgd-asam-acme.seed$seed"           --seed "$seed" --lr $SGD_LR --asam --acme
    run "table/sgd-asam-nesterov.seed$seed"       --seed "$seed" --lr $SGD_LR --asam --nesterov
    run "table/sgd-asam-nesterov-acme.seed$seed"  --seed "$seed" --lr $SGD_LR --asam --nesterov --acme
    run "table/adam.seed$seed"                    --seed "$seed" --lr $ADAM_LR --adam
    run "table/adam-acme.seed$seed"               --seed "$seed" --lr $ADAM_LR --adam --acme
    run "table/adam-nesterov.seed$seed"           --seed "$seed" --lr $ADAM_LR --adam --nesterov
    run "table/adam-nesterov-acme.seed$seed"      --seed "$seed" --lr $ADAM_LR --adam --nesterov --acme
    run "table/adam-asam.seed$seed"               --seed "$seed" --lr $ADAM_LR --adam --asam
    run "table/adam-asam-acme.seed$seed"          --seed "$seed" --lr $ADAM_LR --adam --asam --acme
    run "table/adam-asam-nesterov.seed$seed"      --seed "$seed" --lr $ADAM_LR --adam --asam --nesterov
    run "table/adam-asam-nesterov-acme.seed$seed" --seed "$seed" --lr $ADAM_LR --adam --asam --nesterov --acme
done
report
