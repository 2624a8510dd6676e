"""Every Python block of the README and of docs/ runs as it stands, page by page."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "icassp25" / "README.md", *DOCS]
BLOCK = re.compile(r"^```python(?: torchrun=(\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Packages without which a page cannot run.
NEEDS = {
    "find_lr.md": ["lightning", "accelerate"],
    "frameworks.md": ["lightning", "accelerate", "transformers"],
    "watching.md": ["tensorboard", "wandb"],
}

# What the README's example takes for granted.
README_PREAMBLE = """
import torch
torch.manual_seed(0)
model, criterion = torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss()
loader, epochs = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)], 2
"""

# In the interpreter's own end a thread of gloo's now and then aborts a rank, with any optimizer.
WITHOUT_EXIT = """
import os, sys
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""

# Blocks share a namespace; tracebacks name the page and its lines. Where torchvision does not import by itself
# the frameworks could not either.
RUNNER = """
import sys
import icassp25.vision
namespace = {"__name__": "__main__"}
for name in sys.argv[1:]:
    page, source = open(name).read().split("\\n", 1)
    exec(compile(source, page, "exec"), namespace)
"""


# W&B's offline file: a header of 7 bytes, then LevelDB's log format (checksum 4, length 2, type 1, in blocks of 32 KiB)
# of protocol buffers. W&B's service writes it behind the run's back: it is whole when the record of the run's end is there.
WANDB_READER = """
import glob, json, time
from wandb.proto import wandb_internal_pb2

def read(data):
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + 7 + length > len(data):
            return
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""

path, late = glob.glob("wandb/offline-run-*/*.wandb")[0], time.monotonic() + 120
records = []
while not any(record.WhichOneof("record_type") == "exit" for record in records):
    assert time.monotonic() < late, f"no end of the run in {path}"
    time.sleep(0.1)
    records = list(read(open(path, "rb").read()))
rows = [
    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    for record in records
    if record.WhichOneof("record_type") == "history"
]
assert len(rows) == 10, rows
assert rows[-1]["acme/step_size"] == optimizer.report.step_size, rows[-1]
assert rows[-1]["acme/loss"] == optimizer.report.loss
"""


def blocks(page: Path) -> Iterator[tuple[str | None, str]]:
    """The processes that a block wants, if any, and its code on the lines that it has in the page."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield match[1], "\n" * text[: match.start(2)].count("\n") + match[2]


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_run(page: Path, tmp_path: Path) -> None:
    """Blocks of one process in one namespace, from the top; a block for torchrun where it stands."""
    for package in NEEDS.get(page.name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    pending: list[str] = []
    if page == ROOT / "README.md":
        (tmp_path / "preamble.py").write_text("preamble\n" + README_PREAMBLE)
        pending.append("preamble.py")
    for number, (processes, code) in enumerate(blocks(page)):
        name = f"block{number}.py"
        if processes is None:
            (tmp_path / name).write_text(f"{page}\n{code}")
            pending.append(name)
        else:
            (tmp_path / name).write_text(code + WITHOUT_EXIT)
            run(
                ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", name],
                tmp_path,
            )
    if pending:
        run(["-c", RUNNER, *pending], tmp_path)


def test_pages_are_found_and_linked() -> None:
    """docs/README.md links every page, the README links docs/, and most pages have a recipe."""
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page for page in DOCS if page.name != "README.md"]
    assert all(f"]({page.name})" in index for page in pages)
    assert "docs/README.md" in (ROOT / "README.md").read_text()
    assert sum(any(blocks(page)) for page in [ROOT / "README.md", *pages]) >= 10


def test_wandb_offline_run_holds_the_reports(tmp_path: Path) -> None:
    """The recipe's offline file, read back with wandb's own reader, has ten rows of the reports' fields."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    page = ROOT / "docs" / "watching.md"
    code = [code for _, code in blocks(page) if "tensorboard" not in code]
    (tmp_path / "all.py").write_text(f"{page}\n" + "\n".join(code) + WANDB_READER)
    run(["-c", RUNNER, "all.py"], tmp_path)
