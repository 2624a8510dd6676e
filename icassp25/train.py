"""One run of the experiment, from its configuration to its CSV: the training loop and what belongs to it."""

from __future__ import annotations

import contextlib
import io
import math
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from acme import find_lr, get_polynomial_multi_avg_fn
from icassp25 import optimizers, runlog, tasks
from icassp25.capture import CapturedEvaluation, CapturedStep, Evaluation
from icassp25.config import RunConfig, UsageError
from icassp25.files import write_whole
from icassp25.models import build_model, has_batch_norm, synchronised
from icassp25.parts import Parts
from icassp25.peers import ACME, FORWARD, STATISTICS_BATCHES
from icassp25.ranks import ALONE, Ranks

FINAL_LR_FRACTION = 0.01  # the cosine without ACME ends at lr/100

# Examples made ready at once: enough that the operations' start does not count, and a bounded amount of memory.
EXAMPLES_AT_ONCE = 10_000
TEST_BATCH = 1_000


def run(config: RunConfig, path: Path, ranks: Ranks = ALONE) -> None:
    """Train as `config` says, logging to `path` (a CSV) and the JSON beside it.

    With `config.resume`, go on from the checkpoint beside `path` if there is one; on the CPU, with the same
    number of threads, the run is then bit for bit the one that was not interrupted. A run that diverges (a loss
    that is not finite) ends early, logged as diverged, without an error. In several processes (`ranks`) each calls
    this; all train one model, and the first writes and prints.

    Raises:
        UsageError: something the configuration asks for is not there, or refused; in all processes, if in one.
    """
    with ranks.agreeing():
        device = resolve_device(config, ranks)
        if ranks.first:
            runlog.check_writable(path)
        acme_class = optimizers.acme_class(config.acme_script)
        # What it refuses is said before the data is loaded.
        optimizers.make(config, nn.Linear(1, 1), acme_class)
        wandb = _start_wandb(config) if ranks.first else None
    torch.set_num_threads(config.threads)
    _set_precision(config, device)
    task = ranks.one_per_machine_first(lambda: tasks.load(config, device))
    experiment = Experiment(config, task, device, acme_class, ranks)
    checkpoint = runlog.checkpoint_path(path)
    rows = experiment.load(checkpoint) if config.resume else []
    log = None
    if ranks.first:
        about = _describe(experiment)
        log = runlog.RunLog(path, config, about, rows)
        _print_start(config, about, device, resumed=len(rows))
    while len(rows) < config.epochs and not any(row.diverged for row in rows):
        row = experiment.epoch(len(rows) + 1)
        rows = [*rows, row]
        if log is None:
            continue
        # The checkpoint first: if the process ends between the two, the CSV is rewritten from its rows.
        experiment.save(checkpoint, rows)
        log.append(row)
        _print_row(row)
        if wandb is not None:
            cells = zip(runlog.columns(config), row.cells(config), strict=True)
            wandb.log({name: float(text) for name, text in cells if text})
    if log is None:
        return
    log.finish()
    checkpoint.unlink(missing_ok=True)
    if wandb is not None:
        wandb.finish()
    last = rows[-1]
    print(f"{log.status}: test error {last.test_error:.2%} after epoch {last.epoch}, logged in {path}")


@dataclass
class Progress:
    """What counts from the start of a run, over interruptions."""

    steps: int = 0
    evaluations: float = 0
    seconds: float = 0.0


@dataclass
class Tally:
    """Sums over an epoch, on the training device until the epoch ends."""

    device: torch.device
    steps: int = 0
    decisions: list[int] = field(default_factory=lambda: [0] * len(runlog.SHARES))

    def __post_init__(self) -> None:
        self.loss = torch.zeros((), dtype=_sum_dtype(self.device), device=self.device)
        self.wrong = torch.zeros((), dtype=torch.int64, device=self.device)

    def shares(self) -> tuple[float, ...]:
        return tuple(count / max(self.steps, 1) for count in self.decisions)


class Experiment:
    """Model, task, optimizer and random generators of one run: all that a checkpoint holds, but the data."""

    def __init__(
        self,
        config: RunConfig,
        task: tasks.Task,
        device: torch.device,
        acme_class: optimizers.AcmeClass,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.task, self.device, self.ranks = config, task, device, ranks
        torch.manual_seed(config.seed)
        # The same in all processes: each draws for the whole batch and takes its share.
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.model = build_model(config).to(device, tasks.dtype_of(config), memory_format=torch.channels_last)
        if ranks.size > 1:
            self.model = synchronised(self.model)
        self.train_model = ranks.distributed(self.model, device)
        if config.compile:
            # For training only: the test's batches would each cost another compilation.
            self.train_model = torch.compile(self.model, dynamic=False)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.captures = config.compile and device.type == "cuda"
        self.progress = Progress()
        self.found_lr: float | None = None
        if config.find_lr:
            self.found_lr = self._find_lr()
            config = replace(config, lr=self.found_lr)
        self.optimizer = optimizers.make(config, self.model, acme_class, self.captures)
        self.peer = self.optimizer if config.optimizer != ACME else None
        if self.peer:
            self.peer.others = self._others
        self.scheduler = None
        cosine = self.peer.peer.cosine if self.peer else not config.acme
        if cosine and not config.no_annealing:
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
                self.peer.optimizer if self.peer else self.optimizer,
                T_max=config.anneal_over * config.epochs,
                eta_min=float(self.optimizer.param_groups[0]["lr"]) * FINAL_LR_FRACTION,
            )
        self.tested_model = self.model
        self.average: AveragedModel | None = None
        if config.average_weights or (self.peer and self.peer.peer.averages):
            # With BatchNorm's statistics, as DoG's own averager does, which gives the same.
            average = get_polynomial_multi_avg_fn()
            self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
            self.tested_model = self.average
        self.captured: CapturedEvaluation | None = None  # with `compile`, on CUDA
        self.captured_step: CapturedStep | None = None  # that, and an optimizer that is capturable

    def _find_lr(self) -> float:
        """The rate of `acme.find_lr`, of averaged gradients, on batches of a generator of its own."""
        config = self.config
        closures = (lambda batch=batch: self._evaluate(*batch)[0] for batch in self._others(config.seed))
        betas, start = (config.momentum, optimizers.BETA2), time.perf_counter()
        found = find_lr(self.train_model, closures, adam=config.adam, betas=betas)
        if found.lr is None:
            raise UsageError(f"--find-lr: {found.reason}.")
        self.progress.evaluations += found.evaluations
        self.progress.seconds += time.perf_counter() - start
        return found.lr / (1 if config.adam else 1 - config.momentum)

    def _others(self, seed: int) -> Iterator[tasks.Examples]:
        """Training batches without end, from a generator of their own: the epochs' stay those of every optimizer."""
        config, generator = self.config, torch.Generator(self.device).manual_seed(seed % 2**63)
        while True:
            order = self.task.order(generator)[: config.steps_per_epoch * config.batch_size]
            for chosen in order.split(config.batch_size):
                share = self.ranks.share(len(chosen), config.batch_size)
                yield self.task.training(chosen, generator, share)

    def epoch(self, number: int) -> runlog.Row:
        """Train for one epoch, then test; the row says what came of it."""
        config = self.config
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.ranks.seed(config.seed, number)
        start = time.perf_counter()
        tally = Tally(self.device)
        if self.peer:
            self.peer.train()
        finite = self._train(number, tally)
        if self.scheduler is not None and finite:
            self.scheduler.step()
        loss, wrong = self.ranks.sums(tally.loss, tally.wrong)
        train_loss = loss / self.ranks.size / max(tally.steps, 1) if finite else math.nan
        train_error = wrong / max(tally.steps * config.batch_size * config.about.predictions, 1)
        if self.peer:
            self.peer.eval()
            if self.peer.peer.modes and has_batch_norm(self.model):
                self._renew_statistics(number)
        self.progress.seconds += time.perf_counter() - start
        group = self.optimizer.param_groups[0]
        step_size = self.peer.step_size(lr) if self.peer else float(group["step_size"])
        self.ranks.check_equal(self.model, step_size, *tally.decisions)
        test_loss, test_error = self.test(*self.task.test)
        held_out = self.task.validation
        validation = (None, None) if held_out is None else self.test(*held_out)
        return runlog.Row(
            epoch=number,
            **asdict(self.progress) | {"evaluations": round(self.progress.evaluations)},
            lr=lr,
            step_size=step_size,
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test_loss,
            test_error=test_error,
            shares=tally.shares() if config.acme else None,
            validation_loss=validation[0],
            validation_error=validation[1],
        )

    def _train(self, number: int, tally: Tally) -> bool:
        """One pass over the training examples; whether all losses and gradients were finite."""
        config = self.config
        order = self.task.order(self.generator)[: config.steps_per_epoch * config.batch_size]
        chunk = config.batch_size * max(EXAMPLES_AT_ONCE // config.batch_size, 1)
        per_process = config.batch_size // self.ranks.size
        self.model.train()

        def ready(chosen: Tensor) -> tasks.Examples:
            """This process's share of a part of the order."""
            share = self.ranks.share(len(chosen), config.batch_size)
            return self.task.training(chosen, self.generator, share)

        parts = Parts(order.split(chunk), ready, self.device)
        silent = not (self.ranks.first and sys.stderr.isatty())
        what = f"epoch {number}/{config.epochs}"
        with tqdm(total=config.steps_per_epoch, desc=what, unit="step", leave=False, disable=silent) as bar:
            for inputs, targets in parts:
                batches = list(zip(inputs.split(per_process), targets.split(per_process), strict=True))
                for batch, following in zip(batches, [*batches[1:], None], strict=True):
                    try:
                        self._step(*batch, tally, partial(self._prepare, parts, following))
                    except FloatingPointError:
                        return False
                    bar.update()
        if self.captured_step is not None:
            loss, wrong, decisions = self.captured_step.counted()
            tally.loss, tally.wrong = tally.loss + loss, tally.wrong + wrong
            tally.decisions = list(map(sum, zip(tally.decisions, decisions, strict=True)))
        # Whether captured steps were finite nobody has looked for yet.
        group = self.optimizer.param_groups[0]
        return not group.get("capturable") or int(group["annealing_step"]) == group["steps"]

    def _prepare(self, parts: Parts, following: tasks.Examples | None) -> None:
        """Hand a CUDA device what the next steps take: the next part, and the next batch of this one."""
        parts.prepare()
        if self.captured is not None and following is not None:
            self.captured.load(*following)

    def _step(
        self, batch: Tensor, targets: Tensor, tally: Tally, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """One step; `meanwhile` is called once the device has its last evaluation to work on."""
        evaluate = self.evaluation(batch, targets)
        if self.captured_step is not None and self.captured_step.due():
            self.progress.evaluations += self.captured_step(batch, targets)
            meanwhile()
        else:
            self._ordinary_step(evaluate, targets, tally, meanwhile)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.progress.steps += 1
        tally.steps += 1

    def _ordinary_step(
        self, evaluate: Callable[[], Evaluation], targets: Tensor, tally: Tally, meanwhile: Callable[[], None]
    ) -> None:
        first: list[Tensor] = []

        def closure() -> Tensor:
            self.progress.evaluations += torch.is_grad_enabled()  # forward passes alone are counted below
            loss, logits = evaluate()
            if not first:
                wrong = (logits.detach().argmax(1) != targets).sum()
                first.extend((tally.loss + loss.detach(), tally.wrong + wrong))
            if getattr(self.optimizer, "next_part", "leap") == "leap":
                meanwhile()
            return loss

        self.optimizer.step(closure)
        if self.peer:
            self.progress.evaluations += FORWARD * self.peer.forwards
        tally.loss, tally.wrong = first
        if self.config.acme:
            decision = self.optimizer.report.decision
            if decision is not None:
                tally.decisions[int(decision)] += 1  # code -1, non-finite, counts in the last place

    def evaluation(self, batch: Tensor, targets: Tensor) -> Callable[[], Evaluation]:
        """A function that evaluates loss and gradient of a batch, as often as it is called."""
        if not self.captures:
            return lambda: self._evaluate(batch, targets)
        if self.captured is None:
            self.captured = CapturedEvaluation(self.model, self._evaluate, batch, targets)
            if self.optimizer.param_groups[0].get("capturable"):
                self.captured_step = CapturedStep(self.model, self.optimizer, self.captured)
        return partial(self.captured, batch, targets)

    def _evaluate(self, batch: Tensor, targets: Tensor) -> Evaluation:
        self.model.zero_grad()
        with self._autocast():
            logits = self.train_model(batch)
            loss = self.criterion(logits, targets)
        if loss.requires_grad:  # not in a search, which looks at losses alone
            loss.backward()
        return loss, logits

    @torch.no_grad()
    def _renew_statistics(self, number: int) -> None:
        """BatchNorm's running statistics at the weights to be tested, from augmented training images."""
        others = self._others(self.config.seed + number)
        self.model.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for inputs, _ in islice(others, min(STATISTICS_BATCHES, self.config.steps_per_epoch)):
                with self._autocast():
                    self.model(inputs)

    @torch.no_grad()
    def test(self, examples: Tensor, targets: Tensor) -> tuple[float, float]:
        """Mean loss (with label smoothing) and error of the model over examples and targets as the task keeps them.

        Each process takes some of the batches.
        """
        model = self.tested_model.eval()
        loss = torch.zeros((), dtype=_sum_dtype(self.device), device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        mine = slice(self.ranks.rank, None, self.ranks.size)
        batches = zip(examples.split(TEST_BATCH)[mine], targets.split(TEST_BATCH)[mine], strict=True)
        for batch, wanted in batches:
            with self._autocast():
                logits = model(self.task.inputs(batch))
                loss += self.criterion(logits, wanted).to(loss.dtype) * len(batch)
            wrong += (logits.argmax(1) != wanted).sum()
        whole_loss, whole_wrong = self.ranks.sums(loss, wrong)
        return whole_loss / len(examples), whole_wrong / targets.numel()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def save(self, path: Path, rows: list[runlog.Row]) -> None:
        """Write the checkpoint, whole or not at all."""
        content = {
            "options": self.config.to_dict(),
            "data": self.task.checksum,
            "rows": [asdict(row) for row in rows],
            "progress": asdict(self.progress),
            "found_lr": self.found_lr,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "generator": self.generator.get_state(),
            "cpu_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        torch.save(content, whole := io.BytesIO())
        write_whole(path, whole.getvalue())

    def load(self, path: Path) -> list[runlog.Row]:
        """Continue from a checkpoint, where there is one; the rows logged so far.

        The first process reads it, for all: they need not be as many as those that wrote it.

        Raises:
            UsageError: it cannot be read, or is not one of this run.
        """

        def read() -> bytes | None:
            try:
                return path.read_bytes() if path.exists() else None
            except OSError as error:
                raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from None

        whole = self.ranks.decided(read)
        if whole is None:
            return []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what other programs write
                content = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
                self._refuse_another_run(path, content)
            return self._continue_from(content)
        except UsageError:
            raise
        except Exception as error:  # of any kind: the file may hold anything
            first = str(error).partition("\n")[0].partition(". ")[0]
            reason = f"{type(error).__name__}: {first}".rstrip(".: ")
            raise UsageError(
                f"{path}: not a checkpoint of this program ({reason}); delete it to start over."
            ) from error

    def _refuse_another_run(self, path: Path, content: dict[str, Any]) -> None:
        differences = self.config.same_run(RunConfig.from_dict(content["options"]))
        if content.get("data", self.task.checksum) != self.task.checksum:
            differences += [f"the version of --dataset {self.config.dataset} that was installed"]
        if differences:
            raise UsageError(
                f"{path}: the interrupted run differs in {', '.join(differences)}; "
                "use what it began with, another --output, or delete it to start over."
            )

    def _continue_from(self, content: dict[str, Any]) -> list[runlog.Row]:
        self.model.load_state_dict(content["model"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].to(self.device)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        self.progress = Progress(**content["progress"])
        self.found_lr = content.get("found_lr", self.found_lr)
        self.generator.set_state(content["generator"])
        torch.set_rng_state(content["cpu_rng"])
        if content["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(content["cuda_rng"], self.device)
        return [runlog.Row(**row) for row in content["rows"]]


def _sum_dtype(device: torch.device) -> torch.dtype:
    """What losses are summed in: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def resolve_device(config: RunConfig, ranks: Ranks = ALONE) -> torch.device:
    """The training device: `auto` is the GPU where there is one, this process's own if there are several.

    Raises:
        UsageError: no such device, or a precision it does not have.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.size > 1:
        name = f"cuda:{ranks.local}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            f"--device {config.device}: not available here ({reason}); use --device cpu."
        ) from None
    if config.precision == "float64" and device.type == "mps":
        raise UsageError("--precision float64: this run is on mps, which has no float64; use --device cpu.")
    if config.precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32: needs a CUDA device, and this run is on {device.type}.")
    return device


def _set_precision(config: RunConfig, device: torch.device) -> None:
    reduced = config.precision == "tf32"
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced
    torch.backends.cudnn.benchmark = device.type == "cuda"


def _start_wandb(config: RunConfig) -> Any:
    if config.wandb is None:
        return None
    try:
        import wandb
    except ImportError:
        raise UsageError(f"--wandb {config.wandb}: needs the package wandb (pip install wandb).") from None
    try:
        return wandb.init(project="acme", name=config.wandb, config=config.to_dict())
    except wandb.Error as error:
        raise UsageError(f"--wandb {config.wandb}: {str(error).rstrip('.')}.") from None


def _describe(experiment: Experiment) -> dict[str, Any]:
    """What the run's JSON says beside its options."""
    from icassp25.vision import torchvision

    processes = experiment.ranks.size
    return {
        **({} if experiment.found_lr is None else {"found_lr": experiment.found_lr}),
        "parameters": sum(p.numel() for p in experiment.model.parameters()),
        "device": f"{processes} × " * (processes > 1) + device_name(experiment.device),
        "processes": processes,
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda if experiment.device.type == "cuda" else None,
            **optimizers.versions(experiment.config),
            **experiment.task.versions,
        },
        **experiment.task.about,
    }


def device_name(device: torch.device) -> str:
    """The device in words: the GPU's name, or the CPU's with the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"CPU: {name}, {threads} thread{'s' * (threads != 1)}"


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether the device has no bfloat16 arithmetic for convolutions, so that float32 is several times as fast.

    On the CPU oneDNN has it from AVX-512 on (and on Arm with BF16); torch's own convolutions take its place elsewhere.
    """
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _commit() -> str | None:
    """The commit of the code that runs, with a mark if the working tree differs from it."""
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _print_start(config: RunConfig, about: dict[str, Any], device: torch.device, resumed: int) -> None:
    print(
        f"{config.model} {config.depth}-{config.width_alpha}, {about['parameters']:,} parameters, "
        f"{config.dataset}, {config.available_images:,} {config.about.unit}, {config.epochs} epochs of "
        f"{config.steps_per_epoch} steps, {about['device']}, {config.precision}"
    )
    if config.precision == "bfloat16" and emulates_bfloat16(device):
        print("bfloat16 is emulated on this device: --precision float32 is several times as fast")
    if resumed:
        print(f"resumed after epoch {resumed}")
    shares = "  % of decisions:   0   1   2   3   4   5   6   7  nf" if config.acme else ""
    print("epoch    evals  seconds step size train loss   error  test loss   error" + shares, flush=True)


def _print_row(row: runlog.Row) -> None:
    line = (
        f"{row.epoch:>5} {row.evaluations:>8} {row.seconds:>8.1f} {row.step_size:>9.3g} "
        f"{row.train_loss:>10.4f} {row.train_error:>7.2%} {row.test_loss:>10.4f} {row.test_error:>7.2%}"
    )
    if row.shares is not None:
        line += " " * 18 + " ".join(f"{100 * share:>3.0f}" for share in row.shares)
    print(line, flush=True)
