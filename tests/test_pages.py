"""README and docs say what is so: links, tables, numbers. `python -m tests.test_pages` brings quoted tables up to date.

A quote is a comment that names a file, an empty line, and the file's first table, row for row.
"""

import csv
import inspect
import re
from pathlib import Path

import pytest

from acme import Acme

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("", "docs", "results", "icassp25")
PAGES = [page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))]
QUOTE = re.compile(r"(<!-- (figures/\S+) -->\n\n)((?:\|.*\n)*)")


def quoted(text: str) -> str:
    """The text of a page with every quote as its file has it today."""

    def anew(match: re.Match[str]) -> str:
        table = re.search(r"(?:^\|.*\n)+", (ROOT / match[2]).read_text(), re.MULTILINE)
        assert table, f"no table in {match[2]}"
        return match[1] + table[0]

    return QUOTE.sub(anew, text)


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", without_code(page)):
        there = (page.parent / target) if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_spelling_is_british(page: Path) -> None:
    """Of what has two spellings; "optimizer" is torch's word, and names stand in code or with a capital."""
    words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", without_code(page))
    assert not re.findall(r"\w*(?:(?<![sS])iz(?:e|ed|es|ing|ation)s?\b|color|avior|gray|center)\w*", words)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1300


def test_research_has_a_first_page() -> None:
    assert len((ROOT / "docs" / "research.md").read_text().split("\n# The log\n")[0].split()) <= 600


def test_pages_quote_the_tables_as_they_are() -> None:
    """`python -m tests.test_pages` mends it."""
    for page in PAGES:
        assert quoted(page.read_text()) == page.read_text(), page.name


def test_readme_shows_figure_and_table_of_one_study() -> None:
    headline = (ROOT / "README.md").read_text().split("## Result")[1].split("\n## ")[0]
    assert len(set(re.findall(r"(?:\]\(|<!-- )figures/([\w-]+)/", headline))) == 1
    assert headline.count("![") == headline.count("<!-- figures/") == 1


def rows(text: str) -> list[list[str]]:
    """The cells of all tables of a text, head and ruler included."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def section(page: str, name: str) -> list[list[str]]:
    return rows((ROOT / page).read_text().split(f"\n## {name}\n")[1].split("\n## ")[0])


def test_results_are_those_of_the_figures() -> None:
    """Numbers of tables that were put together by hand stand in the tables that they are from."""
    studies = {"CIFAR-100": "short-float32", "text": "text", "digits": "digits"}
    found: list[tuple[str, str]] = []
    for label, *cells in section("docs/results.md", "For as many evaluations")[2:]:
        found += [(f"{studies[label.split(',')[0]]}/peers_equal.md", cell) for cell in cells]
    (_, *tasks), _, *others = section("docs/results.md", "Without knowing the scale")
    for _, *cells in others:
        found += [(f"{studies[task]}/peers_budget.md", cell) for task, cell in zip(tasks, cells, strict=True)]
    for _, *cells, _ in section("docs/results.md", "Longer trainings")[2:]:
        found += [("short/length.md", cell) for cell in cells]
    assert len(found) == 30 + 51 + 9
    for table, cell in found:
        assert any(cell in row for row in rows((ROOT / "figures" / table).read_text())), (table, cell)


def test_cost_is_that_of_the_benchmark() -> None:
    names = {"all off": "Acme", "adam": "Acme adam", "acme": "Acme acme", "acme, adam": "Acme acme adam"}
    columns = [("cpu", ""), ("cpu", ", compiled"), ("cuda", ""), ("cuda", ", compiled")]
    ratios: dict[tuple[str, str], list[str]] = {}
    for device in ("cpu", "cuda"):
        with (ROOT / "results" / "benchmarks" / f"step_cost-{device}.csv").open() as file:
            for row in csv.DictReader(file):
                ratios.setdefault((device, row["optimizer"]), []).append(f"{float(row['ratio']):.2f}")
    for label, _, *cells in section("docs/cost.md", "Time")[2:7]:
        name = names.get(label.replace("`", ""), "Acme all four")
        for (device, how), cell in zip(columns, cells, strict=True):
            assert cell == " / ".join(ratios[device, name + how]), (label, device, how)


def test_table_of_arguments_is_the_constructor() -> None:
    table = {
        name.strip("`"): default.strip("`") for name, default, _ in section("docs/optimizer.md", "Arguments")
    }
    for name, parameter in inspect.signature(Acme.__init__).parameters.items():
        if name not in ("self", "model"):
            assert table[name] == repr(parameter.default), name


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(quoted(page.read_text()))
