# Sourced by sweep.sh: what a sweep trains. PRESET is one of smoke, quick, short, text, digits, small, reduced, paper.
#
#   ABOUT     on what machine, and about how long the sweeps take
#   TIME_LIMIT  minutes of a run's slot on a SLURM cluster
#   EPOCHS    of all runs but those of sweep_equal.sh
#   OPTIONS   the other options that all runs share: model, data, batch
#   PRECISION  of the runs; float32 if there is none
#   SEEDS     of the table's runs           LR_SEEDS  of the runs over the initial step size
#   LRS       initial step sizes to start from
#   SGD_LR, ADAM_LR  initial step sizes in the table, with ACME and without
#   SWEEPS    what reproduce.sh trains, and status.sh looks at
#   PEER_SEEDS  of the runs beside peers   PEER_VALIDATION  training images held out in them, to choose scales on
#   DOG_SCALE   DoG's default, as its authors have it for networks with BatchNorm, or without
#   KEPT      ACME that keeps its step size, beside peers: chosen by sweep_gain.sh's held-out examples of text and digits
#
# From outside: DATASET=synthetic (trains on the built-in set, under the study name PRESET-synthetic),
# DATA_DIR (holds cifar-100-python/; text and digits need none), STUDY, RESULTS, PRECISION (float32 for a CPU without
# bfloat16), SEEDS, LR_SEEDS and PEER_SEEDS replace what is set here.

PRESET=${PRESET:-quick}
SGD_LR=0.1    # the published default
ADAM_LR=0.001 # Adam's customary default
LRS="1e-4 1e-3 1e-2 1e-1 1 10 100"
PEER_VALIDATION=5000
DOG_SCALE=0.0001
KEPT=(--acme --gain 4 --adapt-steps 100 --search-steps 20)
SWEEPS="table lr equal"
own='' # the data set of a preset that is about it

case $PRESET in
smoke)
    ABOUT="any machine, about four minutes on two CPU cores, the built-in synthetic set"
    TIME_LIMIT=10
    DATASET=synthetic
    STUDY=${STUDY:-smoke}
    OPTIONS=(--model WRN --depth 4 --width-alpha 1 --train-images 100 --batch-size 25 --threads 1)
    EPOCHS=2
    LRS="1e-4 1e-1 100"
    SEEDS=${SEEDS:-42}
    PEER_VALIDATION=500
    ;;
quick)
    ABOUT="two CPU cores, 25 minutes"
    TIME_LIMIT=20
    OPTIONS=(--model WRN --depth 4 --width-alpha 1 --train-images 8000 --batch-size 100 --threads 1)
    PRECISION=${PRECISION:-bfloat16}
    EPOCHS=3
    LRS="1e-4 3e-3 1e-1 3 100" # every one and a half decades
    SEEDS=${SEEDS:-42}
    ;;
short)
    ABOUT="two CPU cores with AVX-512 BF16, some twelve hours; meant for the runs beside peers"
    TIME_LIMIT=60
    OPTIONS=(--model WRN --depth 4 --width-alpha 1 --batch-size 200 --threads 1)
    PRECISION=${PRECISION:-bfloat16}
    EPOCHS=4
    SWEEPS="peers gain length"
    SEEDS=${SEEDS:-42}
    PEER_SEEDS=${PEER_SEEDS:-42 43 44}
    ;;
text)
    ABOUT="one CPU core, an hour and a half; meant for the runs beside peers"
    TIME_LIMIT=10
    own=text
    OPTIONS=(--train-images 2400 --batch-size 16 --label-smoothing 0 --threads 1)
    EPOCHS=4
    PEER_VALIDATION=625
    DOG_SCALE=0.000001
    SWEEPS=peers
    SEEDS=${SEEDS:-42}
    PEER_SEEDS=${PEER_SEEDS:-42 43 44}
    ;;
digits)
    ABOUT="one CPU core, half an hour; meant for the runs beside peers"
    TIME_LIMIT=10
    own=digits
    OPTIONS=(--batch-size 32 --label-smoothing 0 --threads 1)
    EPOCHS=20
    PEER_VALIDATION=300
    DOG_SCALE=0.000001
    SWEEPS=peers
    SEEDS=${SEEDS:-42}
    PEER_SEEDS=${PEER_SEEDS:-42 43 44}
    ;;
small)
    ABOUT="two CPU cores with AVX-512 BF16, some ten hours"
    TIME_LIMIT=120
    OPTIONS=(--model WRN --depth 4 --width-alpha 1 --batch-size 200 --threads 1)
    PRECISION=${PRECISION:-bfloat16}
    EPOCHS=30
    SWEEPS="table kept"
    SEEDS=${SEEDS:-42}
    ;;
reduced)
    ABOUT="one GPU; on an H100, three runs at a time, about an hour for one seed and two and a half for three"
    TIME_LIMIT=60
    OPTIONS=(--model WRN --depth 16 --width-alpha 4 --batch-size 200 --compile)
    PRECISION=${PRECISION:-bfloat16}
    EPOCHS=30
    SEEDS=${SEEDS:-42 43 44}
    PEER_SEEDS=${PEER_SEEDS:-42 43 44}
    ;;
paper)
    ABOUT="one GPU; 36 hours of an H100 at its measured speed with bfloat16 and --compile, longer as it is"
    TIME_LIMIT=240
    OPTIONS=(--model WRN --depth 16 --width-alpha 8 --batch-size 200)
    PRECISION=${PRECISION:-tf32}
    EPOCHS=200
    SEEDS=${SEEDS:-42 43 44}
    PEER_SEEDS=${PEER_SEEDS:-42 43 44}
    LR_SEEDS=${LR_SEEDS:-42 43 44}
    ;;
*)
    echo "PRESET=$PRESET: expected smoke, quick, short, text, digits, small, reduced or paper." >&2
    exit 2
    ;;
esac

LR_SEEDS=${LR_SEEDS:-42}
PEER_SEEDS=${PEER_SEEDS:-42}
DATASET=${DATASET:-${own:-cifar100}}
if [ -n "$own" ] && [ "$DATASET" != "$own" ]; then
    echo "DATASET=$DATASET: expected $own, which PRESET=$PRESET is about." >&2
    exit 2
fi
case $DATASET in
"$own" | cifar100) STUDY=${STUDY:-$PRESET} ;;
synthetic) STUDY=${STUDY:-$PRESET-synthetic} ;;
*)
    echo "DATASET=$DATASET: expected cifar100 or synthetic." >&2
    exit 2
    ;;
esac

if [ -n "${PRECISION:-}" ]; then OPTIONS+=(--precision "$PRECISION"); fi
OPTIONS+=(--epochs "$EPOCHS" --dataset "$DATASET")
if [ -n "${DATA_DIR:-}" ] && [ -z "$own" ]; then OPTIONS+=(--data-dir "$DATA_DIR"); fi
