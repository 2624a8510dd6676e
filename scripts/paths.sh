# Sourced by the other scripts before all else: goes to the repository's root. Relative DATA_DIR, CIFAR100_ROOT, RESULTS,
# FIGURES and PYTHON are from where the user stands; a PYTHON without a slash is a command.
for name in DATA_DIR CIFAR100_ROOT RESULTS FIGURES PYTHON; do
    case $name=${!name:-} in
    *= | *=/*) ;;
    PYTHON=*/* | DATA_DIR=* | CIFAR100_ROOT=* | RESULTS=* | FIGURES=*) export "$name=$PWD/${!name}" ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
for name in DATA_DIR RESULTS FIGURES; do # below the root they stay relative: a run's JSON has them
    if [ -n "${!name:-}" ]; then export "$name=${!name#"$PWD"/}"; fi
done
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
