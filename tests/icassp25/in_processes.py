"""What each process of test_distributed.py runs, on a small test set: `in_processes.py runs FOLDER RUNS`, or the
experiment's script: `in_processes.py script OPTIONS…`."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from torch import nn

from icassp25 import data, ranks, train
from icassp25.config import RunConfig, UsageError

SCRIPT = Path(train.__file__).with_name("cifar100.acme.py")


def check_agreements(together: ranks.Ranks) -> None:
    """What one process refuses, all refuse; what the first decides is decided; who drifts is found out."""
    for refusing in range(together.size):
        with pytest.raises(UsageError, match=f"^{refusing} refuses$"), together.agreeing():
            if together.rank == refusing:
                raise UsageError(f"{refusing} refuses")
    assert together.decided(lambda: f"said by {together.rank}") == "said by 0"
    assert together.decided(lambda: b"0" * 10**6) == b"0" * 10**6
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 1)
    nn.init.constant_(model.bias, 1)
    together.check_equal(model, 0.5)
    with pytest.raises(RuntimeError, match="drifted apart"):
        together.check_equal(model, together.rank)


if __name__ == "__main__":
    data.SYNTHETIC_TEST_IMAGES = 100
    train.TEST_BATCH = 50  # some for each process
    what, *arguments = sys.argv[1:]
    if what == "script":
        sys.argv = [str(SCRIPT), *arguments]
        runpy.run_path(str(SCRIPT), run_name="__main__")
    folder, runs = arguments
    with ranks.joined("cpu") as together:
        check_agreements(together)
        for name, options in json.loads(runs).items():
            train.run(RunConfig(**options), Path(folder) / f"{name}.csv", together)
    ranks.end(0)
