"""The report: that one page holds all of it, and, in a browser, that it fits a phone and paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report(results: Path, made: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of three seeds, one run diverged, with the committed figures as its pictures."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(results / "three", folder / "results" / "three")
    for seed in (42, 43, 44):
        for name, options in (
            ("sgd", {"epochs": 8}),
            ("adam-asam", {"adam": True, "asam": True, "epochs": 6}),
        ):
            lr = 0.001 if "adam" in options else 0.1
            path = folder / "results" / "three" / "equal" / f"{name}.seed{seed}.csv"
            made.run(path, seed=seed, lr=lr, **options)
    made.run(folder / "results" / "three" / "table" / "sgd.seed43.csv", 3, seed=43, lr=0.1)
    out = folder / "figures" / "three"
    out.mkdir(parents=True)
    for path in (ROOT / "figures" / "quick").glob("*.png"):
        shutil.copy(path, out)
    command = [sys.executable, str(ROOT / "scripts" / "make_report.py"), "--study", "three"]
    options = ["--results", str(folder / "results"), "--out", str(folder / "figures")]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return out / "report.html"


def test_all_is_on_one_page(report: Path) -> None:
    text = report.read_text()
    assert not re.search(r"https?:|<link|<script|url\(|@import", text)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]{30})', text))
    assert text.count("<figure>") == 10
    words = re.sub(r'"data:[^"]*"', "", text)
    for part in (
        "The 16 optimizers",
        "Initial step sizes",
        "Equal evaluations",
        "table/sgd.seed42",
        "lr/adam-acme.lr0.01.seed43",
        "equal/adam-asam.seed44",
        "diverged",
        "batch_size 100",
        "device Example CPU",
        "abc1234",
        "* over the seeds that did not diverge.",
    ):
        assert part in words, part
    assert words.count("batch_size") == 1  # what all have in common is said once


def test_without_figures_the_rest_is_there(made: SimpleNamespace, tmp_path: Path) -> None:
    """As where drawing them failed, and of a study that has none."""
    made.run(tmp_path / "results" / "s" / "gain" / "sgd-acme.gain2.seed42.csv", acme=True, gain=2.0)
    command = [sys.executable, str(ROOT / "scripts" / "make_report.py"), "--study", "s"]
    subprocess.run([*command, "--results", str(tmp_path / "results"), "--out", str(tmp_path)], check=True)
    text = (tmp_path / "s" / "report.html").read_text()
    assert "No figures: " in text and "Figures</h2>" not in text
    assert "gain/sgd-acme.gain2.seed42" in text and "Runs of gain/" in text


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


def browse(page: Path, *options: str) -> str:
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [str(CHROMIUM), "--headless", *quiet, profile, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


MEASURE = """<!doctype html><meta charset="utf-8"><body><script>
const page = %s;
async function measure(width) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:800px;border:0`;
  const loaded = new Promise(done => frame.onload = done);
  frame.srcdoc = page;
  document.body.append(frame);
  await loaded;
  const inside = frame.contentDocument;
  const sizes = [...inside.querySelectorAll("p, li, td, th, figcaption")].map(
    each => parseFloat(getComputedStyle(each).fontSize));
  const images = [...inside.querySelectorAll("img")];
  const loose = [...inside.querySelectorAll("table, img")].filter(
    each => each.getBoundingClientRect().right > width && !each.closest(".wide"));
  return [width, inside.documentElement.scrollWidth, Math.min(...sizes), images.length,
    images.filter(each => each.naturalWidth > 0 && each.clientWidth >= 320).length, loose.length].join(" ");
}
(async () => {
  const lines = [await measure(390), await measure(1100)];
  document.body.innerHTML = "<pre>" + lines.join("\\n") + "</pre>";
})();
</script>"""


@in_a_browser
def test_it_fits_a_phone_and_a_desktop(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "measure.html"
    page.write_text(MEASURE % json.dumps(report.read_text()).replace("</", "<\\/"))
    measured = re.search(
        r"<pre>(.*)</pre>",
        browse(page, "--dump-dom", "--hide-scrollbars", "--virtual-time-budget=20000"),
        re.DOTALL,
    )
    assert measured is not None
    for line, width in zip(measured[1].splitlines(), (390, 1100), strict=True):
        assert line.split()[:2] == [str(width), str(width)]  # the page itself does not scroll sideways
        smallest, images, seen, loose = map(float, line.split()[2:])
        assert smallest >= 13 and images == seen == 10 and loose == 0


@in_a_browser
def test_it_prints(report: Path, tmp_path: Path) -> None:
    """On A4, nothing beyond the margins, and each table's caption on its page."""
    page = tmp_path / "report.html"
    shutil.copy(report, page)
    browse(page, f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext (Debian: poppler-utils)")
    boxes = subprocess.check_output(["pdftotext", "-bbox", tmp_path / "report.pdf", "-"], text=True)
    pages = boxes.split("<page ")[1:]
    assert 5 < len(pages) < 12
    for text in pages:
        width = re.match(r'width="([\d.]+)"', text)
        assert width is not None and 590 < float(width[1]) < 600
        words = re.findall(r'xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)<', text)
        assert words
        assert min(float(word[0]) for word in words) > 25 and max(float(word[2]) for word in words) < 570
        assert min(float(word[3]) - float(word[1]) for word in words) > 5  # points
        for heading in ("Figures", "Environment"):
            assert words[-1][4] != heading
    whole = [" ".join(re.findall(r'">(.*?)</word>', text)) for text in pages]
    for caption, row in (
        ("Without and with ACME, initial", "Adam + ASAM + Nesterov"),
        ("From each initial step size,", "Max − min"),
        ("At equal gradient evaluations,", "Adam + ASAM + Nesterov"),
    ):
        assert any(caption in text and row in text.split(caption)[1] for text in whole), caption
