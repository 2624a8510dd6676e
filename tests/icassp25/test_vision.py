"""torchvision imports with and without its compiled operators. Each case needs a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A stand-in that fails as torchvision does where its library does not load, on any machine.
STAND_IN = {
    "__init__.py": """
        import torch
        from . import extension
        torch.library.register_fake("torchvision::nms")(lambda *arguments: None)
        torch.library.register_fake("torchvision::qnms")(lambda *arguments: None)
    """,
    "extension.py": "import sys; sys.imports_of_extension = getattr(sys, 'imports_of_extension', 0) + 1",
    "transforms/__init__.py": "",
    "transforms/functional.py": "",
    "transforms/autoaugment.py": "",
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": "equalize_image = None",
}


def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:0] = {[str(p) for p in (path, ROOT) if p]}\n" + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )


def write_package(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / "torchvision" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "torchvision" / name).write_text(textwrap.dedent(text))


def test_declares_the_operators_only_where_the_plain_import_fails():
    result = run(
        """
        import torch
        from icassp25 import vision
        image = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
        assert torch.equal(vision.functional.hflip(image), image.flip(-1))
        assert sys.modules["torchvision"] is vision.torchvision
        assert vision.torchvision.transforms.functional is vision.functional
        assert vision.torchvision.extension is sys.modules["torchvision.extension"]
        loads_by_itself = vision.torchvision.extension._has_ops()
        assert (vision.declarations is None) == loads_by_itself, vision.declarations
        """
    )
    assert result.returncode == 0, result.stderr


def test_does_nothing_where_torchvision_imports_by_itself():
    result = run(
        """
        import torch
        from torch.library import Library
        library = Library("torchvision", "FRAGMENT")
        try:
            import torchvision
        except RuntimeError:
            # As if the compiled library had been loaded.
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from icassp25 import vision
        assert vision.declarations is None
        assert vision.functional.hflip(torch.ones(3, 2, 2)).shape == (3, 2, 2)
        """
    )
    assert result.returncode == 0, result.stderr


def test_a_failed_import_leaves_no_half_of_the_package_behind(tmp_path):
    write_package(tmp_path, STAND_IN)
    result = run(
        """
        from icassp25 import vision
        assert vision.declarations is not None
        assert sys.imports_of_extension == 2, sys.imports_of_extension
        assert vision.torchvision.extension is sys.modules["torchvision.extension"]
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_another_error_is_passed_on_without_a_second_try(tmp_path):
    failing = """
        import sys
        sys.tries = getattr(sys, "tries", 0) + 1
        raise RuntimeError(f"compiled for another Python, try {sys.tries}")
    """
    write_package(tmp_path, {"__init__.py": failing})
    result = run("import icassp25.vision", tmp_path)
    assert result.returncode == 1
    assert "RuntimeError: compiled for another Python, try 1" in result.stderr
    assert "try 2" not in result.stderr
