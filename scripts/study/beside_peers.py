"""ACME beside its peers: the runs of `results/<study>/peers`, what a user who searches gets, and at what price."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from icassp25.config import RunConfig
from icassp25.peers import PEERS
from icassp25.runlog import Run
from study.runs import Group, by_key, chance_of, last, load, mean, runs_of
from study.stats import Numbers, Search, compare, numbers_of, spread
from study.tables import Cells, difference, error, number, prefixed, seconds, table
from study.titles import TITLES, rank, title
from study.words import caption, how, notes, spread_words
from study.write import NOTHING, Table

BUDGETS = (1, 2, 3, 4, 5, 6, 7, 14)
"""Gradient evaluations in all, in those of one run at one evaluation a step."""


class Peers:
    """A study's runs by key and scale, a multiple of the key's default, which is the start of its runs named x1.

    Raises:
        UsageError: no finished run, or no telling which scale of runs is meant.
    """

    def __init__(self, results: Path, study: str) -> None:
        groups, self.left_out = load(results / study / "peers", of_key=frozenset({"lr"}))
        self.groups: dict[str, dict[float, Group]] = {}
        self.defaults: dict[str, float] = {}
        for key, some in sorted(by_key(groups).items(), key=lambda item: rank(item[0])):
            default = next((group.config.lr for group in some if ".x1." in group.runs[0].path.name), None)
            if default is None:
                self.left_out += [
                    f"{run.path.name} is left out: no run from the default (x1)." for run in runs_of(some)
                ]
                continue
            self.defaults[key] = default
            self.groups[key] = {float(f"{group.config.lr / default:.6g}"): group for group in some}
        self.runs = self.runs_of(self.groups)
        self.seeds = sorted({run.config.seed for run in self.runs})
        self.scales = sorted({scale for scales in self.groups.values() for scale in scales})
        self.chance = chance_of(self.runs[0])
        self.steps = max(map(self.steps_of, self.groups))
        self.whole = [key for key in self.groups if self.steps_of(key) == self.steps]
        self.step_seconds = _step_seconds(results / "benchmarks" / f"peers-{study}.csv")

    def runs_of(self, keys: Iterable[str]) -> list[Run]:
        return [run for key in keys for run in runs_of(self.groups[key].values())]

    def config(self, key: str) -> RunConfig:
        """Of one of its runs."""
        return next(iter(self.groups[key].values())).config

    def steps_of(self, key: str) -> int:
        return self.config(key).epochs * self.config(key).steps_per_epoch

    def family(self, key: str) -> str:
        """SGD or Adam: which of the two with ACME it is compared with."""
        config = self.config(key)
        peer = PEERS.get(config.optimizer)
        return "Adam" if config.adam or (peer is not None and peer.family == "adam") else "SGD"

    def group(self, key: str | None, scale: float | None = 1.0) -> Group:
        return self.groups.get(key, {}).get(scale, Group())

    def searches(self, key: str) -> dict[int, Search]:
        """By seed, of those that have every scale, where images were held out."""
        found = {}
        for seed in self.seeds:
            runs = {
                scale: run
                for scale in self.scales
                for run in self.group(key, scale).runs
                if run.config.seed == seed
            }
            if len(runs) == len(self.scales) and self.config(key).validation:
                found[seed] = Search(
                    self.scales,
                    [math.inf if run.diverged else last(run, "validation_error") for run in runs.values()],
                    [self.chance if run.diverged else 100 * last(run, "test_error") for run in runs.values()],
                )
        return found

    def tuned(self, key: str) -> float | None:
        """The scale of lowest validation error with the first seed that has all."""
        return next((search.best for search in self.searches(key).values()), None)

    def budget(self, key: str, draws: int, outwards: bool = False) -> list[float]:
        """Test error of a search of `draws` runs, by seed."""
        searches = self.searches(key).values()
        return [search.outwards(draws) if outwards else search.expected(draws) for search in searches]

    def cost(self, key: str, column: str = "evaluations") -> float | None:
        """What a run takes: the mean of the last `column` over the runs that did not diverge. Seconds are those that the
        steps take in benchmarks/peers.py, where it has measured this study."""
        if column == "seconds" and self.step_seconds:
            timed = [
                name
                for name in (key, TITLES[key].timed if key in TITLES else "")
                if name in self.step_seconds
            ]
            steps = self.cost(key, "steps")
            return steps * self.step_seconds[timed[0]] if timed and steps is not None else None
        return mean(last(run, column) for run in self.runs_of([key]) if not run.diverged)

    def price(self, key: str) -> int:
        """Gradient evaluations in those of a whole training at one a step, rounded."""
        return round((self.cost(key) or 0) / self.steps)

    def counterpart(self, key: str, equal: bool = False) -> str | None:
        """ACME from its default with the same base and about as many evaluations: the first in the order of the tables;
        `equal`: preferably one that trains for fewer steps, so that there are no more."""
        found = [
            other
            for other in (self.groups if equal else self.whole)
            if self.config(other).acme and self.family(other) == self.family(key) and self.group(other).runs
            and not is_rival(other)
        ]  # fmt: skip
        price = self.price(key)
        return min(
            found,
            key=lambda other: (abs(self.price(other) - price), equal and other in self.whole),
            default=None,
        )


def is_rival(key: str) -> bool:
    return key in TITLES and TITLES[key].rival


def _step_seconds(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["optimizer"]: float(row["step_ms"]) / 1000 for row in csv.DictReader(file)}


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────────


def rows_of(study: Peers, keys: list[str], equal: bool) -> list[Numbers]:
    """A method's numbers from its default and its tuned scale, at its worst, and ACME's differences from these."""
    rows = []
    for key in keys:
        other = study.counterpart(key, equal)
        default, tuned, acme = study.group(key), study.group(key, study.tuned(key)), study.group(other)
        errors = [group.error for group in study.groups[key].values() if group.error is not None]
        lost = sum(bool(group.diverged) for group in study.groups[key].values())
        rows.append(
            {
                "optimizer": title(key),
                "acme": other and title(other),
                "is_acme": study.config(key).acme,
                "start": study.defaults[key],
            }
            | prefixed("default_", numbers_of(default) | compare(default, acme))
            | prefixed("tuned_", numbers_of(tuned) | compare(tuned, acme))
            | prefixed("acme_", numbers_of(acme))
            | {"chosen": study.tuned(key), "worst_error": max(errors, default=None)}
            | {"scales": len(study.scales), "scales_diverged": lost}
            | {f"run_{column}": study.cost(key, column) for column in ("evaluations", "seconds")}
            | {
                f"acme_run_{column}": other and study.cost(other, column)
                for column in ("evaluations", "seconds")
            }
        )
    return rows


ERRORS: Cells = {
    ("", "Optimizer"): lambda row: row["optimizer"],
    ("Test error, %", "default"): error("default_"),
    ("Test error, %", "tuned"): error("tuned_"),
}
DIFFERENCES: Cells = {
    **difference("default_", "ACME − default"),
    **difference("tuned_", "ACME − tuned"),
}


def peers_table(study: Peers) -> Table:
    """Every method from its default scale, tuned, and at its worst, at the same epochs."""

    def worst(row: Numbers) -> str:
        lost = f", diverged at {row['scales_diverged']} of {row['scales']}" * bool(row["scales_diverged"])
        return number("worst_error", ".2f")(row) + lost

    def unless_acme(text):
        return lambda row: NOTHING if row["is_acme"] else text(row)

    rows = rows_of(study, study.whole, equal=False)
    others = dict.fromkeys(row["acme"] for row in rows if not row["is_acme"] and row["acme"])
    return table(
        "peers",
        "Beside peers",
        "ACME beside its peers, at the same epochs: test error in % after the last epoch "
        f"({spread_words(study.runs)}) from the default scale, from the scale of {len(study.scales)} with the lowest "
        "last-epoch validation error (chosen with the first seed, and used with all), and from the worst scale (mean "
        "over seeds); gradient evaluations and seconds of one run. The differences are those of ACME from its default "
        f"with the same base (SGD or Adam) and about as many evaluations a step ({'; '.join(others)}), in percentage "
        "points, paired by seed, with their 95 % confidence interval by Student's t. "
        f"{caption(study.runs_of(study.whole))}.",
        rows,
        {
            **ERRORS,
            ("Test error, %", "at"): lambda row: NOTHING if row["chosen"] is None else f"×{row['chosen']:g}",
            ("Test error, %", "worst"): worst,
            ("", "Evaluations"): number("run_evaluations", ",.0f"),
            ("", "Seconds"): seconds("run_seconds"),
            ("", "Seeds"): lambda row: str(row["default_seeds"] + row["default_diverged"]),
            **{column: unless_acme(text) for column, text in DIFFERENCES.items()},
        },
        notes=how([group for key in study.whole for group in study.groups[key].values()], study.defaults)
        + notes_of(study, study.whole),
        summary=summary(study),
    )


def equal_table(study: Peers) -> Table:
    """Every peer beside ACME at no more gradient evaluations, or about as many."""
    keys = [key for key in study.groups if not study.config(key).acme or is_rival(key)]
    rows = rows_of(study, keys, equal=True)
    costs = [(row["acme_run_evaluations"], row["run_evaluations"]) for row in rows]
    no_more = all(acme <= own for acme, own in costs if acme and own)
    others = dict.fromkeys(row["acme"] for row in rows if row["acme"])
    return table(
        "peers_equal",
        "Beside peers, equal evaluations",
        f"ACME beside its peers, at {'no more' if no_more else 'about as many'} gradient evaluations: one run of each. "
        f"ACME from its default scale, with the same base ({'; '.join(others)}). As published it is also among the "
        f"peers, for half the epochs. Test error in % after the last epoch ({spread_words(study.runs)}); the tuned scale has the "
        f"lowest last-epoch validation error of {len(study.scales)} with the first seed, whose runs are not counted "
        "here. Differences in percentage points, paired by seed, with their 95 % confidence interval by Student's t. "
        f"{caption(study.runs)}.",
        rows,
        {
            **ERRORS,
            ("Test error, %", "ACME"): error("acme_"),
            **DIFFERENCES,
            ("Evaluations", "without"): number("run_evaluations", ",.0f"),
            ("Evaluations", "ACME"): number("acme_run_evaluations", ",.0f"),
            ("Seconds", "without"): seconds("run_seconds"),
            ("Seconds", "ACME"): seconds("acme_run_seconds"),
        },
        notes=notes_of(study, list(study.groups)),
    )


def budget_table(study: Peers) -> Table | None:
    """The test error of a random search over the scales, for a number of evaluations in all."""
    one = min((cost for key in study.whole if (cost := study.cost(key))), default=0)
    rows, budgets = [], [round(budget * one) for budget in BUDGETS]
    for key in study.whole:
        cost = study.cost(key)
        row: Numbers = {"optimizer": title(key), "run": cost, "seeds": len(study.searches(key))}
        for budget, evaluations in zip(BUDGETS, budgets, strict=True):
            runs = min(int(budget * one / cost + 1e-6), len(study.scales)) if cost else 0
            for way, outwards in (("random", False), ("outwards", True)):
                found = spread(study.budget(key, runs, outwards) if runs else [])
                row |= prefixed(
                    f"{evaluations}_{way}_", dict(zip(("error_mean", "error_std"), found, strict=True))
                )
        rows.append(row)
    if not any(row["seeds"] for row in rows):
        return None
    short = [
        f"Left out of the searches: {title(key)}, seed {seed}: not every scale has its run."
        for key in study.whole
        for seed in study.seeds
        if seed not in study.searches(key)
    ]
    above = "Gradient evaluations"
    return table(
        "peers_budget",
        "Beside peers, search included",
        "What a user gets who does not know the scale: the expected test error in % of the best by last-epoch validation "
        "error of the runs that a number of gradient evaluations pays for, search included, at scales drawn without "
        f"replacement from {len(study.scales)} over the decades around the default (after Dodge et al., Show Your Work, "
        f"EMNLP 2019; {spread_words(study.runs)}). A diverged run counts as {study.chance:.3g} % and is never chosen before one "
        f"that is not. The CSV has the same for a search from the default outwards. {caption(study.runs_of(study.whole))}.",
        rows,
        {
            ("", "Optimizer"): lambda row: row["optimizer"],
            (above, "a run"): number("run", ",.0f"),
            **{(above, f"{evaluations:,}"): error(f"{evaluations}_random_") for evaluations in budgets},
        },
        notes=notes_of(study, study.whole) + short,
    )


def overview_table(studies: Mapping[str, Peers]) -> Table:
    """Every method in every study: from its default scale, tuned, and from one scale drawn at random."""
    keys = sorted({key for study in studies.values() for key in study.whole}, key=rank)
    rows = []
    for key in keys:
        row: Numbers = {"optimizer": title(key)}
        for task, study in studies.items():
            there = key in study.groups
            tuned = study.tuned(key) if there else None
            evaluations, steps = (
                study.cost(key, column) if there else None for column in ("evaluations", "steps")
            )
            row |= {f"{task}_evaluations_a_step": evaluations and evaluations / steps}
            row |= prefixed(f"{task}_default_", numbers_of(study.group(key)))
            row |= prefixed(f"{task}_tuned_", numbers_of(study.group(key, tuned)))
            row |= {
                f"{task}_chosen": tuned,
                f"{task}_random_error": mean(study.budget(key, 1)) if there else None,
            }
        rows.append(row)

    def evaluations(row: Numbers) -> str:
        found = [value for task in studies if (value := row[f"{task}_evaluations_a_step"]) is not None]
        return (
            " to ".join(dict.fromkeys(f"{end:.3g}" for end in (min(found), max(found)))) if found else NOTHING
        )

    columns = {("", "Optimizer"): lambda row: row["optimizer"], ("", "Evaluations a step"): evaluations}
    lines = []
    for task, study in studies.items():
        above = f"{task}, error in %"
        columns |= {(above, side): error(f"{task}_{side}_", digits=1) for side in ("default", "tuned")}
        columns[above, "random"] = number(f"{task}_random_error", ".1f")
        scale = f"{caption(study.runs_of(study.whole))}; {len(study.scales)} scales."
        lines += [f"{task}: {line}" for line in [scale, *notes_of(study, study.whole)]]
    return table(
        "overview",
        "Beside peers, on several tasks",
        "ACME beside its peers: test error in % after the last epoch, mean ± standard deviation over the seeds: from the "
        "default scale; tuned, which is from the scale with the lowest last-epoch validation error with the first seed, after a "
        "run from each; and random, which is to be expected of one run from a scale drawn at random from those "
        "over six decades (a diverged run counts as guessing).",
        rows,
        columns,
        notes=lines,
    )


def notes_of(study: Peers, keys: list[str]) -> list[str]:
    groups = [group for key in keys for group in study.groups[key].values()]
    wanted = {key: len(study.scales if key in study.whole else study.groups[key]) for key in keys}
    lines = notes(groups, study.left_out, wanted, timed=bool(study.step_seconds))
    if study.step_seconds:
        lines.append(
            "Seconds: the steps of a run times what one takes in benchmarks/peers.py, tests and start left out."
        )
    return lines


def summary(study: Peers) -> list[str]:
    """How many peers ACME from its default is ahead of, for each way that takes about one evaluation a step."""
    lines = []
    for key in study.whole:
        if not study.config(key).acme or study.price(key) > 1:
            continue
        rivals = [
            other
            for other in study.whole
            if not study.config(other).acme and study.family(other) == study.family(key)
        ]
        for name, scales in (
            ("default", dict.fromkeys(rivals, 1.0)),
            ("tuned", {other: study.tuned(other) for other in rivals}),
        ):
            means = {
                title(other): compare(study.group(other, scale), study.group(key))["difference"]
                for other, scale in scales.items()
            }
            ahead = [other for other, mean in means.items() if mean is not None and mean < 0]
            count = sum(mean is not None for mean in means.values())
            if count:
                words = f"{title(key)} from its default is ahead of {len(ahead)} of {count} {name} peers"
                lines.append(words + f": {', '.join(ahead)}" * bool(ahead) + ".")
    return lines
