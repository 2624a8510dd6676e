"""A table, and its files: Markdown, LaTeX, HTML, and its numbers in full as CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from icassp25.files import write_whole

NOTHING = "—"
NUMBER = re.compile(r"([+−]?)([\d,]+)(\.\d+)?(?: ± (\d+)(\.\d+)?)?([*†]?)")
TEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "—": "---"}
    | {
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "α": r"$\alpha$",
        "†": r"$\dagger$",
        "<": "$<$",
        ">": "$>$",
    }
    | {character: "\\" + character for character in "&%$#_{}"}
)


@dataclass(frozen=True)
class Table:
    name: str
    title: str  #: above it in the report
    caption: str
    frame: pd.DataFrame  #: cells as text; columns are pairs: what stands above, and their names
    numbers: pd.DataFrame  #: what the cells are made of
    notes: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)  #: what is to be seen, in sentences
    footer: int = 0  #: so many of the last rows are about the others

    def below(self, lines: Mapping[str, Mapping[tuple[str, str], str]]) -> Table:
        """The same with more rows, by their names and columns, set off from the others."""
        _, *others = self.frame.columns
        rows = [[name, *(cells.get(column, "") for column in others)] for name, cells in lines.items()]
        frame = pd.concat([self.frame, pd.DataFrame(rows, columns=self.frame.columns)], ignore_index=True)
        return replace(self, frame=frame, footer=len(rows))

    def text(self, style: str) -> str:
        """In one of tabulate's styles."""
        names = [f"{above}: {name}" if above else name for above, name in self.frame.columns]
        align = ["left"] + ["right"] * (len(names) - 1)
        flat = self.frame.set_axis(names, axis="columns")
        return flat.to_markdown(index=False, tablefmt=style, disable_numparse=True, colalign=align)

    def markdown(self) -> str:
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([self.caption, "", self.text("pipe"), *[""] * bool(notes), *notes, ""])

    def latex(self, study: str) -> str:
        """A `table*` environment for the packages booktabs, graphicx and siunitx, shrunk where it is too wide."""
        columns = ["l"] + [_siunitx(self.frame[column]) for column in self.frame.columns[1:]]
        styler = _styler(self.frame.map(_tex_cell)).format_index(tex, axis="columns")
        styler.set_table_styles(
            [
                {"selector": "footnotesize", "props": ":"},
                {"selector": "setlength", "props": r":{\tabcolsep}{2pt}"},
                {"selector": "sisetup", "props": ":{separate-uncertainty, retain-zero-uncertainty, retain-explicit-plus, "
                 "group-digits=integer, group-separator={,}, group-minimum-digits=4}"},
            ]
        )  # fmt: skip
        text = styler.to_latex(
            hrules=True, siunitx=True, environment="table*", position_float="centering", multicol_align="c",
            column_format="".join(columns), caption=tex(self.caption), label=f"tab:{study}-{self.name}",
        )  # fmt: skip
        lines = text.splitlines()
        if self.footer:
            lines.insert(lines.index(r"\bottomrule") - self.footer, r"\midrule")
        fitting = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{"
        lines = [fitting + line if line.startswith(r"\begin{tabular}") else line for line in lines]
        notes = [r"\par\smallskip\raggedright " + tex(" ".join(self.notes))] * bool(self.notes)
        lines[-2:] = [lines[-2] + "}", *notes, lines[-1]]
        return "\n".join([r"% Needs \usepackage{booktabs, graphicx, siunitx}.", *lines, ""])

    def html(self) -> str:
        styler = _styler(self.frame).format(escape="html").format_index(escape="html", axis="columns")
        first = len(self.frame) - self.footer
        classes = self.frame.map(lambda _: "").astype(object)
        classes.iloc[first : first + 1] = "foot"
        return styler.set_td_classes(classes).to_html(cell_ids=False)

    def write(self, out: Path, study: str) -> None:
        """NAME.md, .tex and .csv."""
        out.mkdir(parents=True, exist_ok=True)
        numbers = self.numbers.to_csv(index=False, lineterminator="\n")
        for suffix, text in (("md", self.markdown()), ("tex", self.latex(study)), ("csv", numbers)):
            write_whole(out / f"{self.name}.{suffix}", text)

    def __str__(self) -> str:
        return "\n".join([self.caption, "", self.text("simple"), "", *self.summary, *self.notes, ""])


def tex(text: str) -> str:
    return text.translate(TEX)


def _styler(frame: pd.DataFrame):
    if not any(above for above, _ in frame.columns):
        frame = frame.droplevel(0, axis="columns")
    return frame.style.hide(axis="index")


def _tex_cell(text: str) -> str:
    """A number as siunitx reads it, or text, which it leaves alone in braces."""
    number = NUMBER.fullmatch(text)
    if number is None:
        return f"{{{tex(text)}}}" if text else ""
    plain = text.removesuffix(number[6]).replace(",", "").replace("−", "-").replace("±", r"\pm")
    return plain + f" {{{tex(number[6])}}}" * bool(number[6])


def _siunitx(cells: pd.Series) -> str:
    """The column's format: an S that has room for all its numbers, or r where there are none."""
    found = [number.groups("") for number in map(NUMBER.fullmatch, cells) if number]
    if not found:
        return "r"
    sign = "+" * any(number[0] for number in found)
    whole = max(len(number[1].replace(",", "")) for number in found)
    decimals = max(len(number[2].lstrip(".")) for number in found)
    spread = max(len((number[3] + number[4]).replace(".", "").lstrip("0")) for number in found)
    suffix = max(number[5] for number in found)
    room = f", table-space-text-post={{{tex(suffix)}}}" * bool(suffix)
    return f"S[table-format={sign}{whole}.{decimals}{f'({spread})' if spread else ''}{room}]"
