"""Variants of Acme that were tried and are not in it: docs/research.md says what came of each.

`path_lr` is a learning rate finder; every other module has a class `Acme` for `icassp25/cifar100.acme.py --acme-script
research.NAME`, and scripts/sweep_variants.sh runs them.
"""
