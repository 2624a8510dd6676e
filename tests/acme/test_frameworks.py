"""The frameworks' own loops, with the real packages, take the steps of the bare loop."""

import logging
import warnings
from pathlib import Path

import pytest
import torch
from common import MODES, batches, mode_id, net, start
from torch import nn

import icassp25.vision  # noqa: F401  (the frameworks import torchvision, which does not on every machine)
from acme import Acme

SOME = [MODES[0b1000], MODES[0b1100], MODES[0b1111]]
some_modes = pytest.mark.parametrize("mode", SOME, ids=mode_id)
STEPS = 10


def data() -> list:
    return [batches(4, torch.float32)[i % 4] for i in range(STEPS)]


def model_of_the_run() -> nn.Module:
    """With BatchNorm and dropout; random numbers start anew."""
    model = net(torch.float32, dropout=0.2)
    torch.manual_seed(4)
    return model


def bare_loop(mode: dict, dtype: torch.dtype | None = None, schedule: bool = False) -> tuple:
    model = model_of_the_run()
    optimizer = Acme(model, start(mode), **mode, total_steps=STEPS)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, STEPS)
    losses = []
    for x, y in data():

        def closure(x=x, y=y):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        if schedule:
            scheduler.step()
    return [*model.state_dict().values()], losses, optimizer.param_groups[0]["step_size"]


def assert_bit_equal(left: tuple, right: tuple) -> None:
    assert left[1:] == right[1:]
    assert all(map(torch.equal, left[0], right[0]))


# Lightning ----------------------------------------------------------------------------------------------


def lightning_run(mode: dict, folder: Path, schedule: bool = False, **options) -> tuple:
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(torch.float32, dropout=0.2)
            self.losses: list = []

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_train_start(self) -> None:
            torch.manual_seed(4)

        def on_train_batch_end(self, outputs, batch, index) -> None:
            self.losses.append(self.optimizers().optimizer.report.loss)

        def configure_optimizers(self):
            optimizer = Acme(self, start(mode), **mode, total_steps=STEPS)
            if not schedule:
                return optimizer
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data(), batch_size=None))
    group = module.optimizers().optimizer.param_groups[0]
    return [*module.net.state_dict().values()], module.losses, group["step_size"]


@some_modes
@pytest.mark.parametrize("schedule", [False, True])
def test_lightning(mode, schedule, tmp_path) -> None:
    ours = lightning_run(mode, tmp_path, schedule, precision="32-true")
    assert_bit_equal(ours, bare_loop(mode, schedule=schedule))


@some_modes
def test_lightning_in_bfloat16(mode, tmp_path) -> None:
    ours = lightning_run(mode, tmp_path, precision="bf16-mixed")
    assert_bit_equal(ours, bare_loop(mode, torch.bfloat16))


def test_lightning_16_mixed_is_refused_and_explained(tmp_path) -> None:
    """It runs the closure itself and calls GradScaler.step without it."""
    plugins = pytest.importorskip("lightning.pytorch.plugins", reason="Lightning is not installed")
    plugin = plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(RuntimeError, match=r"(?s)GradScaler.*scaler=scaler.*16-mixed.*bf16-mixed"):
        lightning_run(SOME[0], tmp_path, plugins=[plugin])


# Accelerate ---------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator_of():
    """Makes Accelerators, whose state is the process's, and clears it up."""
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield lambda **options: accelerate.Accelerator(cpu=True, **options)
    AcceleratorState._reset_state(True)


def accelerate_run(accelerator, mode: dict, dtype: torch.dtype | None = None) -> tuple:
    inner = model_of_the_run()
    loader = torch.utils.data.DataLoader(data(), batch_size=None)
    model, optimizer, loader = accelerator.prepare(
        inner, Acme(inner, start(mode), **mode, total_steps=STEPS), loader
    )
    torch.manual_seed(4)
    losses = []
    for x, y in data():

        def closure(x=x, y=y):
            optimizer.zero_grad()
            with accelerator.autocast():
                loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            return loss

        optimizer.step(closure)
        losses.append(optimizer.optimizer.report.loss)
    return [*inner.state_dict().values()], losses, optimizer.param_groups[0]["step_size"]


@some_modes
@pytest.mark.parametrize(("precision", "dtype"), [("no", None), ("bf16", torch.bfloat16)])
def test_accelerate(mode, precision, dtype, accelerator_of) -> None:
    assert_bit_equal(accelerate_run(accelerator_of(mixed_precision=precision), mode), bare_loop(mode, dtype))


def test_accelerate_with_a_scaler_is_refused(accelerator_of) -> None:
    """What `mixed_precision="fp16"` makes of a step: GradScaler's own error first, Acme's once it has scaled."""
    accelerator = accelerator_of()
    accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(AssertionError, match="scaler.scale"):
        accelerate_run(accelerator, SOME[0])
    accelerator.scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match=r"(?s)GradScaler.*fp16.*bf16"):
        accelerate_run(accelerator, SOME[0])


# Hugging Face's Trainer -----------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.rows = [{"x": row, "labels": label} for x, y in data() for row, label in zip(x, y, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(torch.float32, dropout=0.2)

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.net(x), labels)}


def trainer_run(mode: dict, folder: Path, override: bool) -> tuple:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    class AcmeTrainer(transformers.Trainer):
        def _get_train_sampler(self, *_) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        if override:

            def training_step(self, model, *args, **kwargs):
                def closure():
                    model.zero_grad()
                    return super(AcmeTrainer, self).training_step(model, *args, **kwargs)

                self.optimizer.step = lambda: None
                return self.optimizer.optimizer.step(closure)

    class Begin(transformers.TrainerCallback):
        def on_step_begin(self, arguments, state, *_, **__) -> None:
            if state.global_step == 0:
                torch.manual_seed(4)

    model = WithLoss()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=12, num_train_epochs=1, max_grad_norm=0, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1, remove_unused_columns=False,
    )  # fmt: skip
    optimizer = Acme(model, start(mode), **mode, total_steps=STEPS)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, STEPS)
    trainer = AcmeTrainer(
        model=model,
        args=arguments,
        train_dataset=Rows(),
        optimizers=(optimizer, scheduler),
        callbacks=[Begin()],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [*model.net.state_dict().values()], losses, optimizer.param_groups[0]["step_size"]


@some_modes
def test_huggingface_trainer_with_the_override(mode, tmp_path) -> None:
    ours, expected = trainer_run(mode, tmp_path, override=True), bare_loop(mode, schedule=True)
    assert all(map(torch.equal, ours[0], expected[0])) and ours[2] == expected[2]
    assert ours[1] == pytest.approx(expected[1], rel=1e-3)  # the log rounds


def test_huggingface_trainer_without_it_is_an_error_that_shows_it(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"(?s)Hugging Face.*training_step.*optimizer\.step\(closure\)"):
        trainer_run(SOME[0], tmp_path, override=False)
