"""Finding, downloading and reading CIFAR-100, and the synthetic set. No test leaves the machine."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest
import torch

from icassp25 import data
from icassp25.config import RunConfig, UsageError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def md5(contents: bytes) -> str:
    return hashlib.md5(contents).hexdigest()


def tar_of(members: dict[str, bytes | str | None]) -> bytes:
    """A tar.gz of files (bytes), symbolic links (str) and folders (None)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(contents, str):
                member.type, member.linkname = tarfile.SYMTYPE, contents
                archive.addfile(member)
            elif contents is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))
    return packed.getvalue()


def pixels(count: int) -> numpy.ndarray:
    return numpy.random.default_rng(count).integers(0, 256, (count, 3072), dtype=numpy.uint8)


FILES = {
    "train": pickle.dumps({"data": pixels(60), "fine_labels": list(range(60)), "coarse_labels": [0] * 60}),
    "test": pickle.dumps({"data": pixels(5), "fine_labels": [4, 0, 3, 1, 2], "coarse_labels": [0] * 5}),
    "meta": pickle.dumps({"fine_label_names": ["apple"]}),
}
PACKED = tar_of({f"cifar-100-python/{name}": contents for name, contents in FILES.items()})


def archive_of(packed: bytes, files: dict[str, bytes] = FILES) -> data.Archive:
    return data.Archive(
        size=len(packed), md5=md5(packed), files={name: md5(contents) for name, contents in files.items()}
    )


ARCHIVE = archive_of(PACKED)


@pytest.fixture(autouse=True)
def no_outside(monkeypatch):
    """Loopback without a proxy, and no data set from the environment."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CIFAR100_ROOT", raising=False)


# ---- downloading ----------------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler, threading.Event], None]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """A server on the loopback that answers every request so; its URL."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self, closing)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}/files/"
        finally:
            closing.set()
            running.shutdown()
            thread.join()


def head(request: BaseHTTPRequestHandler, length: int | None) -> None:
    request.send_response(200)
    if length is not None:
        request.send_header("Content-Length", str(length))
    request.end_headers()


def good(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    if request.path != "/files/cifar-100-python.tar.gz":
        request.send_error(404)
        return
    head(request, len(PACKED))
    request.wfile.write(PACKED)


def not_found(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    request.send_error(404)


def silent(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    closing.wait(20)


def stalling(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    head(request, len(PACKED))
    request.wfile.write(PACKED[: len(PACKED) // 2])
    closing.wait(20)


def trickling(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    """Some 2 kB/s, and never silent for long."""
    head(request, len(PACKED))
    for byte in PACKED:
        request.wfile.write(bytes([byte]) * 20)
        if closing.wait(0.01):
            return


def slow(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    """The whole archive within about a second."""
    head(request, len(PACKED))
    step = len(PACKED) // 20
    for start in range(0, len(PACKED), step):
        request.wfile.write(PACKED[start : start + step])
        if closing.wait(0.05):
            return


def breaking_off(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    head(request, len(PACKED))
    request.wfile.write(PACKED[: len(PACKED) // 2])


def breaking_off_unannounced(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    head(request, None)
    request.wfile.write(PACKED[: len(PACKED) // 2])


def wrong_bytes(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    head(request, len(PACKED))
    request.wfile.write(PACKED[:-1] + bytes([PACKED[-1] ^ 1]))


def another_page(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    head(request, 5)
    request.wfile.write(b"Login")


def endless(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    head(request, None)
    while not closing.is_set():
        request.wfile.write(PACKED)


def no_http(request: BaseHTTPRequestHandler, closing: threading.Event) -> None:
    request.wfile.write(b"SSH-2.0-something\r\n")


FAILURES = [
    (not_found, "answers 404 Not Found"),
    (silent, "sent nothing for 0.5 s"),
    (stalling, "sent nothing for 0.5 s"),
    (trickling, "sends only "),
    (breaking_off, f"broke off after {len(PACKED) // 2} of {len(PACKED)} bytes"),
    (breaking_off_unannounced, f"broke off after {len(PACKED) // 2} of {len(PACKED)} bytes"),
    (wrong_bytes, "sent other bytes (MD5 "),
    (another_page, f"offers 5 bytes instead of {len(PACKED)}"),
    (endless, f"sends more than {len(PACKED)} bytes"),
    (no_http, "cannot be reached (SSH-2.0-something"),
]


def fetch(folder: Path, *sources: str, archive: data.Archive = ARCHIVE, rate=20_000.0) -> Path:
    return data.download(folder, sources, archive, stall_seconds=0.5, minimum_rate=rate)


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


COMPLETE = ["cifar-100-python.tar.gz", *(f"cifar-100-python/{name}" for name in ("meta", "test", "train"))]


@pytest.mark.parametrize(("answer", "reason"), FAILURES, ids=[answer.__name__ for answer, _ in FAILURES])
def test_a_bad_source_is_left_for_the_next(answer, reason, tmp_path, capsys):
    with server(answer) as bad, server(good) as last:
        folder = fetch(tmp_path / "new" / "folder", bad, last)
    assert f"{bad}: {reason}" in capsys.readouterr().err
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert names_in(tmp_path / "new" / "folder") == sorted(COMPLETE)


@pytest.mark.parametrize(("answer", "reason"), FAILURES, ids=[answer.__name__ for answer, _ in FAILURES])
def test_a_bad_source_alone_leaves_nothing_behind(answer, reason, tmp_path):
    with server(answer) as bad, pytest.raises(UsageError) as failure:
        fetch(tmp_path, bad)
    assert f"{bad} {reason}" in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_works_every_source_is_named_with_its_reason(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    with server(not_found) as missing, pytest.raises(UsageError) as failure:
        fetch(tmp_path, nobody, missing)
    message = str(failure.value)
    assert f"{nobody} cannot be reached (Connection refused)" in message
    assert f"{missing} answers 404 Not Found" in message
    assert (
        f"put the files train, test, meta from a copy of it into {tmp_path / 'cifar-100-python'}" in message
    )
    assert "--data-dir" in message


def test_a_fast_source_is_preferred_to_a_slow_one(tmp_path, capsys):
    with server(slow) as reluctant, server(good) as fast:
        fetch(tmp_path, reluctant, fast, rate=100 * len(PACKED))
    assert capsys.readouterr().err.count(f"downloading {reluctant}") == 1


def test_an_intact_archive_is_not_fetched_again_and_a_damaged_one_is(tmp_path):
    packed = tmp_path / ARCHIVE.name
    packed.write_bytes(PACKED)
    fetch(tmp_path)
    assert names_in(tmp_path) == sorted(COMPLETE)

    packed.write_bytes(PACKED[:-1])
    with pytest.raises(UsageError, match="No source"):
        fetch(tmp_path)
    with server(good) as source:
        fetch(tmp_path, source)
    assert packed.read_bytes() == PACKED


def test_only_the_known_files_are_unpacked(tmp_path):
    members = {f"cifar-100-python/{name}": contents for name, contents in FILES.items()}
    packed = tar_of(
        {"../outside": b"x", f"{tmp_path}/absolute": b"x", "cifar-100-python/more": b"x", **members}
    )
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / ARCHIVE.name).write_bytes(packed)
    fetch(folder, archive=archive_of(packed))
    assert names_in(tmp_path) == sorted(f"inner/{name}" for name in COMPLETE)


@pytest.mark.parametrize(
    "changed",
    [
        {"cifar-100-python/train": "/etc/hostname"},
        {"cifar-100-python/train": "meta"},
        {"cifar-100-python/train": None},
        {"cifar-100-python/train": b"other"},
        {"elsewhere/train": FILES["train"]},
    ],
    ids=["link outside", "link inside", "folder", "other contents", "other place"],
)
def test_an_archive_with_another_train_file_is_refused(changed, tmp_path):
    packed = tar_of(
        {"cifar-100-python/test": FILES["test"], **changed, "cifar-100-python/meta": FILES["meta"]}
    )
    (tmp_path / ARCHIVE.name).write_bytes(packed)
    with pytest.raises(UsageError, match=r"cifar-100-python.tar.gz: expected an archive .*train"):
        fetch(tmp_path, archive=archive_of(packed))
    assert not (tmp_path / "cifar-100-python" / "train").exists()


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/data: expected a folder .* Not a directory"):
        fetch(tmp_path / "file" / "data")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_bar_on_a_terminal_and_plain_lines_in_a_log(stream, tmp_path, monkeypatch):
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    with server(good) as source:
        fetch(tmp_path, source)
    assert ("%|" in shown.getvalue()) == shown.isatty()
    assert ("100 % of" in shown.getvalue()) != shown.isatty()


def test_the_official_sources_are_tried_official_first():
    assert data.SOURCES[0] == "https://www.cs.toronto.edu/~kriz/"
    assert len(data.SOURCES) == 4 and all(s.startswith("https://") and s.endswith("/") for s in data.SOURCES)


# ---- finding and reading --------------------------------------------------------------------------------


def fill(folder: Path) -> Path:
    target = folder / "cifar-100-python"
    target.mkdir(parents=True)
    for name, contents in FILES.items():
        (target / name).write_bytes(contents)
    return target


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("nothing may be downloaded here")

    monkeypatch.setattr(data, "download", refuse)


def test_the_option_goes_before_the_environment_before_the_default(tmp_path, monkeypatch, no_download):
    first, second, third = (fill(tmp_path / name) for name in ("first", "second", "third"))
    monkeypatch.setenv("CIFAR100_ROOT", str(second.parent))
    default = third.parent
    assert data.locate(RunConfig(data_dir=str(first.parent)), default) == first
    assert data.locate(RunConfig(data_dir=str(first)), default) == first
    assert data.locate(RunConfig(), default) == second
    monkeypatch.setenv("CIFAR100_ROOT", str(second))
    assert data.locate(RunConfig(), default) == second
    monkeypatch.delenv("CIFAR100_ROOT")
    assert data.locate(RunConfig(), default) == third


def test_a_given_folder_without_the_files_is_a_usage_error(tmp_path, monkeypatch, no_download):
    default = fill(tmp_path / "default").parent
    missing = tmp_path / "missing"
    with pytest.raises(UsageError, match=rf"--data-dir {missing}: expected a folder that holds"):
        data.locate(RunConfig(data_dir=str(missing)), default)
    incomplete = fill(tmp_path / "incomplete")
    (incomplete / "meta").unlink()
    monkeypatch.setenv("CIFAR100_ROOT", str(incomplete.parent))
    with pytest.raises(UsageError, match=rf"CIFAR100_ROOT={incomplete.parent}: expected a folder that holds"):
        data.locate(RunConfig(), default)


def test_only_the_default_folder_is_filled_by_a_download(tmp_path, monkeypatch):
    filled = []

    def download(folder: Path, archive: data.Archive) -> Path:
        filled.append(folder)
        return fill(folder)

    monkeypatch.setattr(data, "download", download)
    assert data.locate(RunConfig(), tmp_path) == tmp_path / "cifar-100-python"
    assert data.locate(RunConfig(), tmp_path) == tmp_path / "cifar-100-python"
    assert filled == [tmp_path]


def test_images_are_read_in_order(tmp_path):
    folder = fill(tmp_path)
    images, labels = data.read_images(folder, "test", ARCHIVE)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert labels.tolist() == [4, 0, 3, 1, 2]
    assert numpy.array_equal(images.numpy(), pixels(5).reshape(5, 3, 32, 32))


def test_a_file_with_another_checksum_is_named_and_not_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "was run"),))

    folder = fill(tmp_path)
    (folder / "train").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UsageError, match=rf"{folder / 'train'}: expected the file .* with MD5 .* delete it"):
        data.read_images(folder, "train", ARCHIVE)
    assert not (tmp_path / "was run").exists()
    (folder / "train").unlink()
    with pytest.raises(UsageError, match=rf"{folder / 'train'}: .* No such file"):
        data.read_images(folder, "train", ARCHIVE)


# ---- choosing the images --------------------------------------------------------------------------------


@pytest.fixture
def numbered(monkeypatch):
    """50 000 images in place of CIFAR-100 whose first two pixels hold their own number."""
    labels = torch.randperm(50_000, generator=torch.Generator().manual_seed(1)) % 100
    images = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(50_000) // 256
    images[:, 0, 0, 1] = torch.arange(50_000) % 256
    monkeypatch.setattr(data, "locate", lambda config: Path())
    monkeypatch.setattr(
        data,
        "read_images",
        lambda folder, name: (images, labels) if name == "train" else (images[:9], labels[:9]),
    )
    return labels


def numbers_of(images: torch.Tensor) -> torch.Tensor:
    return images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1]


@pytest.mark.parametrize(("validation", "train"), [(0, None), (5_000, None), (5_000, 3_000), (49_000, 1_000)])
def test_training_and_validation_images_are_stratified_and_apart(numbered, validation, train):
    chosen = data.load(RunConfig(validation=validation, train_images=train), CPU)
    numbers = numbers_of(chosen.train[0])
    assert len(numbers) == (train or 50_000 - validation)
    assert torch.equal(chosen.train[1], numbered[numbers])
    assert (chosen.train[1].bincount(minlength=100) == len(numbers) // 100).all()
    assert len(chosen.test[0]) == 9
    if not validation:
        assert chosen.validation is None
        assert torch.equal(numbers, torch.arange(50_000))
        return
    held_out = numbers_of(chosen.validation[0])
    assert torch.equal(chosen.validation[1], numbered[held_out])
    assert (chosen.validation[1].bincount(minlength=100) == validation // 100).all()
    assert torch.cat([numbers, held_out]).unique().numel() == len(numbers) + validation


def test_the_choice_depends_on_no_other_option(numbered):
    base = data.load(RunConfig(validation=5_000, train_images=1_000), CPU)
    other_seed = data.load(RunConfig(validation=5_000, train_images=1_000, seed=7), CPU)
    assert torch.equal(base.train[0], other_seed.train[0])
    assert torch.equal(base.validation[0], other_seed.validation[0])
    # The held-out images are the same however many are trained on, and the other way round.
    assert torch.equal(base.validation[0], data.load(RunConfig(validation=5_000), CPU).validation[0])
    assert torch.equal(base.train[0], data.load(RunConfig(train_images=1_000), CPU).train[0])
    # They are not simply the first or the last of the file.
    assert 20_000 < numbers_of(base.validation[0]).float().mean() < 30_000


def test_channel_statistics_are_those_of_the_images():
    images = torch.randint(256, (50, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:, 1] //= 2
    scaled = images.double() / 255
    mean, std = data.channel_statistics(images)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean.double(), scaled.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), scaled.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


# ---- the synthetic set ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthetic() -> data.CifarData:
    return data.load(RunConfig(dataset="synthetic", train_images=5_000, validation=1_000), CPU)


def test_the_synthetic_set_has_the_form_of_cifar(synthetic):
    assert synthetic.train[0].shape == (5_000, 3, 32, 32) and synthetic.train[0].dtype == torch.uint8
    assert synthetic.test[0].shape == (500, 3, 32, 32)
    assert synthetic.validation[0].shape == (1_000, 3, 32, 32)
    for labels in (synthetic.train[1], synthetic.validation[1], synthetic.test[1]):
        assert labels.dtype == torch.int64
        assert (labels.bincount(minlength=100) == len(labels) // 100).all()
    mean, std = data.channel_statistics(synthetic.train[0])
    assert torch.equal(synthetic.mean, mean) and torch.equal(synthetic.std, std)
    # No image is in two of the sets, nor twice in one.
    sets = (synthetic.train[0], synthetic.validation[0], synthetic.test[0])
    assert len({image.tobytes() for images in sets for image in images.numpy()}) == 6_500


def test_a_synthetic_image_does_not_depend_on_how_many_are_made(synthetic):
    fewer = data.load(RunConfig(dataset="synthetic", train_images=1_500, validation=300, seed=7), CPU)
    assert torch.equal(fewer.train[0], synthetic.train[0][:1_500])
    assert torch.equal(fewer.validation[0], synthetic.validation[0][-300:])
    assert torch.equal(fewer.test[0], synthetic.test[0])
    alone, label = data.synthetic_images(torch.tensor([3_141]))
    assert label.item() == 41 and torch.equal(alone[0], synthetic.train[0][3_141])


def test_the_synthetic_set_can_be_learned_and_is_not_trivial(synthetic):
    """A linear classifier on 8×8 averages, in closed form, gets most of the test images, not all."""

    def features(images: torch.Tensor) -> torch.Tensor:
        scaled = (images.float() / 255 - synthetic.mean.view(3, 1, 1)) / synthetic.std.view(3, 1, 1)
        return torch.nn.functional.avg_pool2d(scaled, 4).flatten(1)

    inputs = features(synthetic.train[0])
    targets = torch.nn.functional.one_hot(synthetic.train[1], 100).float()
    weights = torch.linalg.solve(inputs.T @ inputs + 10 * torch.eye(192), inputs.T @ targets)
    predicted = (features(synthetic.test[0]) @ weights).argmax(1)
    error = (predicted != synthetic.test[1]).float().mean()
    assert 0.02 < error < 0.5


def test_the_synthetic_set_is_never_chosen_silently(monkeypatch):
    def fail(folder: Path, archive: data.Archive) -> Path:
        raise UsageError("no network")

    monkeypatch.setattr(data, "download", fail)
    monkeypatch.setattr(data, "_find", lambda folder, archive: None)
    with pytest.raises(UsageError, match="no network"):
        data.load(RunConfig(), CPU)


# ---- the command ----------------------------------------------------------------------------------------


def test_the_command_ends_with_2_and_one_sentence(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "icassp25.data", "--data-dir", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert (
        result.stderr.startswith(f"error: --data-dir {tmp_path}: expected") and result.stderr.count("\n") == 1
    )


def test_the_command_names_a_damaged_file(tmp_path, capsys):
    folder = fill(tmp_path)
    assert data.main(["--data-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {folder / 'train'}: expected the file")


# ---- the real files -------------------------------------------------------------------------------------

REAL_ROOT = os.environ.get("CIFAR100_ROOT")


@pytest.fixture
def real_root() -> str:
    if not REAL_ROOT:
        pytest.skip("CIFAR100_ROOT does not name a folder with CIFAR-100")
    return REAL_ROOT


def test_the_real_set(real_root):
    real = data.load(RunConfig(data_dir=real_root), CPU)
    assert real.train[0].shape == (50_000, 3, 32, 32) and real.test[0].shape == (10_000, 3, 32, 32)
    assert (real.train[1].bincount() == 500).all() and (real.test[1].bincount() == 100).all()
    # As published all over for CIFAR-100.
    assert [round(value, 4) for value in real.mean.tolist()] == [0.5071, 0.4865, 0.4409]
    assert [round(value, 4) for value in real.std.tolist()] == [0.2673, 0.2564, 0.2762]

    from icassp25.vision import functional, torchvision

    reference = torchvision.datasets.CIFAR100(data.locate(RunConfig(data_dir=real_root)).parent, train=False)
    for place in range(0, 10_000, 501):
        image, label = reference[place]
        assert torch.equal(real.test[0][place], functional.pil_to_tensor(image))
        assert real.test[1][place] == label


def test_the_command_on_the_real_files(real_root, capsys):
    assert data.main(["--data-dir", real_root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("cifar-100-python")
    assert [line.split(":")[0] for line in lines[1:]] == ["train", "test", "meta"]
