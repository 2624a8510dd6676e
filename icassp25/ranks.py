"""One run in several processes: what they agree on, what only the first does, and how they end together.

`torchrun --nproc-per-node=N icassp25/cifar100.acme.py …` starts N processes (ranks), which find each other by
the environment variables it sets. Each trains on its share of every batch; the first alone writes. One process
alone, `ALONE`, goes through the same calls, which then communicate with nobody. Nothing here imports torch before
it is needed, so that a finished run is skipped as fast as ever.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from icassp25.config import RunConfig, UsageError
from icassp25.lock import TakenElsewhere

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# The longest wait for another process: in training, where all do the same; and where one may be downloading.
TRAINING_TIMEOUT = timedelta(minutes=10)
PATIENT_TIMEOUT = timedelta(days=1)
# How long a process that has been told to end may take before it is ended from within.
GRACE_SECONDS = 5.0
# How long the others wait, to be ended with the first process, which says what is wrong.
FIRST_SPEAKS_SECONDS = 20.0

_T = TypeVar("_T")


class Lost(Exception):
    """Another process of the run has died, or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one run, seen from one of them: `rank` of 0 … `size` - 1, `local` on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    patient: Any = None  #: process group for what may take long, on the CPU

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes: files, log lines, Weights & Biases."""
        return self.rank == 0

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """A block in which what one process refuses, all refuse: with the first one's error."""
        refusal: Exception | None = None
        try:
            yield
        except (UsageError, TakenElsewhere) as error:
            refusal = error
        for other in self._of_all(refusal):
            if other is not None:
                raise other

    def _of_all(self, mine: _T) -> list[_T]:
        """What each process calls this with, in the order of the ranks."""
        if self.size == 1:
            return [mine]
        import torch.distributed as dist

        all_: list[Any] = [None] * self.size
        dist.all_gather_object(all_, mine, group=self.patient)
        return all_

    def decided(self, decide: Callable[[], _T]) -> _T:
        """What `decide` returns in the first process, or the refusal it raises; the others do not call it."""
        result: list[Any] = [None]
        with self.agreeing():
            if self.first:
                result = [decide()]
        if self.size > 1:
            import torch.distributed as dist

            dist.broadcast_object_list(result, src=0, group=self.patient)
        return result[0]

    def one_per_machine_first(self, do: Callable[[], _T]) -> _T:
        """What `do` returns; one process of each machine calls it before the others, as it may download."""
        results = []
        for turn in (self.local == 0, self.local != 0):
            with self.agreeing():
                if turn:
                    results.append(do())
        return results[0]

    def share(self, count: int, batch_size: int) -> slice | Tensor:
        """This process's part of `count` places that are batches of `batch_size`: of each batch as many."""
        if self.size == 1:
            return slice(None)
        import torch

        return torch.arange(count).view(-1, self.size, batch_size // self.size)[:, self.rank].flatten()

    def sums(self, *values: Tensor) -> list[float]:
        """0-dimensional tensors summed over the processes, in float64."""
        if self.size == 1:
            return [value.item() for value in values]
        import torch
        import torch.distributed as dist

        total = torch.stack([value.to(torch.float64) for value in values])
        dist.all_reduce(total)
        return total.tolist()

    def check_equal(self, model: nn.Module, *values: float) -> None:
        """Raise a `RuntimeError` unless the processes have the same weights, buffers and `values`, bit for bit."""
        if self.size == 1:
            return
        norms = [tensor.double().norm().item() for tensor in model.state_dict().values()]
        all_ = self._of_all(repr([*values, *norms]))
        different = [rank for rank, theirs in enumerate(all_) if theirs != all_[0]]
        if different:
            raise RuntimeError(f"the processes drifted apart: ranks {different} differ from rank 0")

    def seed(self, seed: int, epoch: int) -> None:
        """Seed torch's own generators, from which dropout draws, so that the processes draw other masks.

        Anew at each epoch, as the checkpoint has no state for each process; one alone keeps its generator.
        """
        if self.size > 1:
            import torch

            torch.manual_seed(random.Random(f"{seed} {epoch} {self.rank}").getrandbits(63))

    def distributed(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` (as `models.synchronised` makes it) with gradients that are the means over the processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            # torch 2.13 has another name for `broadcast_buffers`, which older ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            # The normalisations keep their buffers the same in all processes.
            return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


ALONE = Ranks()


def processes() -> int:
    """How many processes this one was started with, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process speaks for all, by the environment: before anything is joined."""
    return processes() == 1 or os.environ["RANK"] == "0"


def check(config: RunConfig) -> None:
    """Raise `UsageError` at the first option that cannot work in several processes."""
    size = processes()
    for wrong, option, expected in (
        (config.batch_size % size, f"batch-size {config.batch_size}", f"a multiple of {size}"),
        (config.optimizer != "acme", f"optimizer {config.optimizer}", "one process, or --optimizer acme"),
        (config.compile, "compile", "one process, or no --compile"),
        (":" in config.device, f"device {config.device}", "auto, cuda (a GPU each) or cpu"),
    ):
        if wrong and size > 1:
            raise UsageError(f"--{option} with {size} processes: expected {expected}.")


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that were started together; alone, there is nothing to join.

    On GPUs they communicate by nccl, else by gloo. `device` is the run's option of that name.

    Raises:
        Lost: another process died in the block, or did not answer.
    """
    if processes() == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    # With a GPU for each only: too few are refused when the device is resolved, by an agreement over gloo.
    cuda = cuda and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    if cuda:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TRAINING_TIMEOUT)
        patient = dist.new_group(backend="gloo", timeout=PATIENT_TIMEOUT)
        yield Ranks(rank, dist.get_world_size(), local, patient)
        dist.barrier(group=patient)  # all leave together: the first to go takes its connections along
    except RuntimeError as error:
        if not _of_communication(error):
            raise
        raise Lost(str(error).strip().splitlines()[0]) from error


def _of_communication(error: RuntimeError) -> bool:
    """Whether an error came from the communication with other processes, not from this one's own work."""
    import torch.distributed as dist

    named = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(name in str(error) for name in named)


def leave(code: int, message: str = "") -> NoReturn:
    """End the process with `code`; what is wrong is said by the first process alone, on the error output.

    In several processes the others wait to be ended with the first: whoever starts them (torchrun) ends all when one
    fails, and should not do so before the first has spoken.
    """
    if message and is_first():
        print(message, file=sys.stderr)
    if processes() == 1:
        sys.exit(code)
    if code and not is_first():
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(FIRST_SPEAKS_SECONDS)
    end(code)


def end(code: int) -> NoReturn:
    """End this one of several processes at once.

    Without the interpreter's own end, in which a thread of gloo's now and then aborts a process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say_once(message: str) -> None:
    """Print on the error output, in the one process that is the first to want to.

    Any of them may be the one that is dead. They ask the store of whoever started them, which outlives them; if
    that does not answer, each says it.
    """
    turn = 1
    with contextlib.suppress(Exception):
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        from torch.distributed import TCPStore

        store = TCPStore(*where, is_master=False, timeout=timedelta(seconds=2), wait_for_workers=False)
        turn = store.add(f"acme/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1)
    if turn == 1:
        print(message, file=sys.stderr, flush=True)


def end_when_told(message: str) -> None:
    """In several processes, end soon after SIGINT or SIGTERM even if the main thread cannot.

    The main thread may be waiting, outside Python, for a process that is dead; Python then calls no handler. A
    thread is told of the signal in any case, waits for the main thread's own end and then says `message`.
    """
    if processes() == 1:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(reader, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        time.sleep(GRACE_SECONDS)
        say_once(message)
        end(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
