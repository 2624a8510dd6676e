#!/usr/bin/env bash
# ACME beside the optimizers people would pick instead, each from its own default scale and from six decades around
# it, on the same images. What --lr scales in each: icassp25/peers.py. ACME in three ways: as published; with a gain, a
# search for the start and a step size that is kept (KEPT in presets.sh), with Adam also with unbiased squares; and that
# with averaged weights, of steps annealed to a quarter. From the default only, for no more gradient evaluations than one
# a step takes for all the epochs: with averaged weights for 0.83 of each epoch's batches, as published for half the
# epochs (of an odd number: rounded up).
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [PEER_SEEDS="42 43"]  scripts/sweep_peers.sh [--slurm]
#
# Needs the packages of the peers: pip install '.[peers]'. The order is from the defaults outwards, seed by seed, so
# that what there is of a sweep that was ended is balanced. Names say the multiple of the default: x0.001 to x1000.
# PEER_POWERS="0 1" trains from these powers of ten times the default only, for the seeds after the one that tunes.
# See presets.sh for what a preset trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--validation "$PEER_VALIDATION")
half=$(((EPOCHS + 1) / 2))
PEER_POWERS=${PEER_POWERS:-0 -1 1 -2 2 -3 3}
averaged=(--anneal-over 1.5 --average-weights)
equal=(--limit-train-batches 0.83) # of 1.2 evaluations a step at most, from 500 steps on
for seed in $PEER_SEEDS; do
    for power in $PEER_POWERS; do
        name=x$(LC_ALL=C printf %g "1e$power").seed$seed
        run "peers/sgd-acme-kept.$name"           --seed "$seed" --lr 0.1e$power "${KEPT[@]}"
        run "peers/adam-acme-kept-unbiased.$name" --seed "$seed" --lr 0.001e$power --adam "${KEPT[@]}" --unbiased-squares
        run "peers/sgd-acme-kept-averaged.$name"  --seed "$seed" --lr 0.1e$power "${KEPT[@]}" "${averaged[@]}"
        run "peers/adam-acme-kept-averaged.$name" --seed "$seed" --lr 0.001e$power --adam "${KEPT[@]}" --unbiased-squares "${averaged[@]}"
        run "peers/sgd-acme.$name"           --seed "$seed" --lr 0.1e$power --acme
        run "peers/adam-acme.$name"          --seed "$seed" --lr 0.001e$power --acme --adam
        if [ "$power" = 0 ]; then
            run "peers/sgd-acme-kept-equal.$name"  --seed "$seed" --lr 0.1e$power "${KEPT[@]}" "${averaged[@]}" "${equal[@]}"
            run "peers/adam-acme-kept-equal.$name" --seed "$seed" --lr 0.001e$power --adam "${KEPT[@]}" --unbiased-squares "${averaged[@]}" "${equal[@]}"
            run "peers/sgd-acme-half.$name"  --seed "$seed" --lr 0.1e$power --acme --epochs $half
            run "peers/adam-acme-half.$name" --seed "$seed" --lr 0.001e$power --acme --adam --epochs $half
        fi
        run "peers/sgd.$name"                --seed "$seed" --lr 0.1e$power --optimizer sgd
        run "peers/adamw.$name"              --seed "$seed" --lr 0.001e$power --optimizer adamw
        run "peers/schedulefree-sgd.$name"   --seed "$seed" --lr 1e$power --optimizer schedulefree-sgd
        run "peers/schedulefree-adamw.$name" --seed "$seed" --lr 0.0025e$power --optimizer schedulefree-adamw
        run "peers/prodigy.$name"            --seed "$seed" --lr 0.000001e$power --optimizer prodigy
        run "peers/dadapt-adam.$name"        --seed "$seed" --lr 0.000001e$power --optimizer dadapt-adam
        run "peers/dog.$name"                --seed "$seed" --lr ${DOG_SCALE}e$power --optimizer dog
        run "peers/sam.$name"                --seed "$seed" --lr 0.1e$power --optimizer sam
        run "peers/asam.$name"               --seed "$seed" --lr 0.1e$power --optimizer asam
        run "peers/momo.$name"               --seed "$seed" --lr 1e$power --optimizer momo
        run "peers/momo-adam.$name"          --seed "$seed" --lr 0.01e$power --optimizer momo-adam
        run "peers/gen.$name"                --seed "$seed" --lr 0.0001e$power --optimizer gen
        run "peers/salsa.$name"              --seed "$seed" --lr 1e$power --optimizer salsa
    done
done
report
