"""Variants of Acme that were tried and are not in it: docs/research.md says what came of each.

Each module has a class `Acme` for `icassp25/cifar100.acme.py --acme-script research.NAME`; scripts/sweep_variants.sh
runs them.
"""
