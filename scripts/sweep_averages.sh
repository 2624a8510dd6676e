#!/usr/bin/env bash
# Annealed steps, averaged weights, neither, both, or averaged weights of steps annealed to a quarter: ACME that keeps its
# step size (Adam's with unbiased squares) from its default, and without annealing from six decades around it, torch's
# SGD and AdamW from once and ten times theirs.
#
#   PRESET=NAME  [DRY_RUN=1] [JOBS=n] [PEER_SEEDS="42 43"]  scripts/sweep_averages.sh [--slurm]
#
# The same images and held-out images as sweep_peers.sh, and the same files where it has the run. See presets.sh for
# what a preset trains. Finished runs are skipped, interrupted ones resumed.
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" || exit

OPTIONS+=(--validation "$PEER_VALIDATION")
averaged=(--no-annealing --average-weights)
partly=(--anneal-over 1.5 --average-weights)
kept=(--acme --gain 2 --adapt-steps 60 --search-steps 20)
for seed in $PEER_SEEDS; do
    ways() { # NAME, the names of the annealed and of the partly annealed run, OPTION…
        local options=(--seed "$seed" "${@:4}")
        run "$2.seed$seed"                  "${options[@]}"
        run "$3.seed$seed"                  "${options[@]}" "${partly[@]}"
        run "averages/$1.neither.seed$seed" "${options[@]}" --no-annealing
        run "averages/$1.both.seed$seed"    "${options[@]}" --average-weights
    }
    ways sgd-acme-kept peers/sgd-acme-kept.x1 peers/sgd-acme-kept-averaged.x1 --lr 0.1 "${kept[@]}"
    ways adam-acme-kept peers/adam-acme-kept-unbiased.x1 peers/adam-acme-kept-averaged.x1 --lr 0.001 --adam "${kept[@]}" \
        --unbiased-squares
    for power in 0 1; do
        scale=x$((10 ** power))
        sgd=(--lr 0.1e$power --optimizer sgd)
        adamw=(--lr 0.001e$power --optimizer adamw)
        ways sgd.$scale   peers/sgd.$scale   averages/sgd.$scale.partly   "${sgd[@]}"
        ways adamw.$scale peers/adamw.$scale averages/adamw.$scale.partly "${adamw[@]}"
        run "averages/sgd.$scale.averaged.seed$seed"   --seed "$seed" "${sgd[@]}" "${averaged[@]}"
        run "averages/adamw.$scale.averaged.seed$seed" --seed "$seed" "${adamw[@]}" "${averaged[@]}"
    done
    for power in 0 -1 1 -2 2 -3 3; do
        scale=x$(LC_ALL=C printf %g "1e$power")
        run "averages/sgd-acme-kept.$scale.averaged.seed$seed"  --seed "$seed" --lr 0.1e$power "${kept[@]}" "${averaged[@]}"
        run "averages/adam-acme-kept.$scale.averaged.seed$seed" --seed "$seed" --lr 0.001e$power --adam "${kept[@]}" \
            --unbiased-squares "${averaged[@]}"
    done
done
report
