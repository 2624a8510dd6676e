"""ACME beside its peers: the runs of `results/<study>/peers`, what a user who searches gets, and at what price."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from icassp25.config import RunConfig, UsageError
from icassp25.peers import PEERS
from study.runs import Group, by_key, chance_of, last, leave_out, load, mean, runs_of
from study.stats import Numbers, Search, compare, numbers_of, spread
from study.tables import OPTIMIZER, Cells, difference, error, number, prefixed, seconds, table
from study.titles import about, rank, title
from study.words import TERMS, ahead, caption, how, missing, notes, scale_of, seeds_of
from study.write import NOTHING, Table

BUDGETS = (1, 2, 3, 4, 5, 6, 7, 14)
"""Gradient evaluations in all, in those of one run at one evaluation a step."""


class Peers:
    """A study's runs by key and scale, a multiple of the key's default, which is the start of its runs named x1."""

    def __init__(self, results: Path, study: str) -> None:
        groups, self.left_out = load(results / study / "peers", of_key=frozenset({"lr"}))
        self.groups: dict[str, dict[float, Group]] = {}
        self.defaults: dict[str, float] = {}
        for key, some in by_key(groups).items():
            default = next((group.config.lr for group in some if ".x1." in group.runs[0].path.name), None)
            if default is None:
                leave_out(self.left_out, some, "no run from the default (x1)")
                continue
            self.defaults[key] = default
            self.groups[key] = {float(f"{group.config.lr / default:.6g}"): group for group in some}
        if not self.groups:
            raise UsageError(" ".join([f"{study}/peers holds no run to compare.", *self.left_out]))
        self.steps = max(map(self.steps_of, self.groups))
        self.whole = [key for key in self.groups if self.steps_of(key) == self.steps]
        self.runs, self.whole_runs = runs_of(self.of(self.groups)), runs_of(self.of(self.whole))
        self.seeds = sorted(seeds_of(self.runs))
        self.scales = sorted({scale for scales in self.groups.values() for scale in scales})
        self.chance = chance_of(self.runs[0])
        timed = results / "benchmarks" / f"peers-{study}.csv"
        self.seconds: dict[str, float] = {}  # of an evaluation, its share of the step included
        if timed.exists():
            table = pd.read_csv(timed, index_col=0)
            self.seconds = (table.step_ms / table.evaluations / 1000).to_dict()

    def of(self, keys: Iterable[str]) -> list[Group]:
        return [group for key in keys for group in self.groups.get(key, {}).values()]

    def config(self, key: str) -> RunConfig:
        """Of one of its runs."""
        return self.of([key])[0].config

    def steps_of(self, key: str) -> int:
        return self.config(key).epochs * self.config(key).steps_per_epoch

    def family(self, key: str) -> str:
        """SGD or Adam: which of the two with ACME it is compared with."""
        config = self.config(key)
        like_adam = config.optimizer in PEERS and PEERS[config.optimizer].family == "adam"
        return "Adam" if config.adam or like_adam else "SGD"

    def group(self, key: str | None, scale: float | None = 1.0) -> Group:
        return self.groups.get(key, {}).get(scale, Group())

    def searches(self, key: str) -> dict[int, Search]:
        """By seed, of those that have every scale, where images were held out."""
        found, every = {}, [run for scale in self.scales for run in self.group(key, scale).runs]
        for seed in self.seeds:
            runs = [run for run in every if run.config.seed == seed]
            if len(runs) == len(self.scales) and runs[0].config.validation:
                validation = [math.inf if run.diverged else last(run, "validation_error") for run in runs]
                test = [self.chance if run.diverged else 100 * last(run, "test_error") for run in runs]
                found[seed] = Search(self.scales, validation, test)
        return found

    def tuned(self, key: str) -> float | None:
        """The scale of lowest validation error with the first seed that has all."""
        return next((search.best for search in self.searches(key).values()), None)

    def budget(self, key: str, draws: int, outwards: bool = False) -> list[float]:
        """Test error of a search of `draws` runs, by seed."""
        searches = self.searches(key).values()
        return [search.outwards(draws) if outwards else search.expected(draws) for search in searches]

    def cost(self, key: str | None, column: str = "evaluations") -> float | None:
        """What a run takes: the mean of the last `column` over the runs that did not diverge. Seconds are those that
        so many evaluations take in benchmarks/peers.py, where it has measured this study."""
        if column == "seconds" and self.seconds:
            evaluations = self.cost(key)
            timed = next((name for name in (key, about(key).timed) if name in self.seconds), None)
            return evaluations * self.seconds[timed] if evaluations and timed else None
        return mean(last(run, column) for run in runs_of(self.of([key])) if not run.diverged)

    def price(self, key: str) -> int:
        """Gradient evaluations in those of a whole training at one a step, rounded."""
        return round((self.cost(key) or 0) / self.steps)

    def counterpart(self, key: str, equal: bool = False) -> str | None:
        """ACME from its default with the same base and about as many evaluations: the first in the order of the tables;
        `equal`: preferably one that trains for fewer steps, so that there are no more."""

        def rivals(other: str) -> bool:
            comparable = self.config(other).acme and not about(other).rival and self.group(other).runs
            return comparable and self.family(other) == self.family(key)

        def distance(other: str) -> tuple[int, bool]:
            return abs(self.price(other) - self.price(key)), equal and other in self.whole

        return min(filter(rivals, self.groups if equal else self.whole), key=distance, default=None)


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────────

ERRORS: Cells = {
    **OPTIMIZER,
    ("Error, %", "default"): error("default_"),
    ("Error, %", "tuned"): error("tuned_"),
}
DIFFERENCES: Cells = {**difference("default_", "ACME − default"), **difference("tuned_", "ACME − tuned")}


def rows_of(study: Peers, keys: list[str], equal: bool = False) -> list[Numbers]:
    """A method's numbers from its default and its tuned scale, at its worst, and ACME's differences from these."""
    rows = []
    for key in keys:
        other = study.counterpart(key, equal)
        default, tuned, acme = study.group(key), study.group(key, study.tuned(key)), study.group(other)
        scales = study.groups[key].values()
        rows.append(
            {"optimizer": title(key), "acme": other and title(other), "is_acme": study.config(key).acme}
            | {"start": study.defaults[key], "scales": len(study.scales), "chosen": study.tuned(key)}
            | prefixed("default_", numbers_of(default) | compare(default, acme))
            | prefixed("tuned_", numbers_of(tuned) | compare(tuned, acme))
            | prefixed("acme_", numbers_of(acme))
            | {"worst_error": max((group.error for group in scales if group.errors), default=None)}
            | {"scales_diverged": sum(bool(group.diverged) for group in scales)}
            | {f"run_{column}": study.cost(key, column) for column in ("evaluations", "seconds")}
            | {f"acme_run_{column}": study.cost(other, column) for column in ("evaluations", "seconds")}
        )
    return rows


def lines_of(study: Peers, keys: list[str]) -> list[str]:
    wanted = {key: len(study.scales if key in study.whole else study.groups[key]) for key in keys}
    timed = bool(study.seconds)
    lines = missing(study.of(keys), wanted) + notes(study.of(keys), study.left_out, timed)
    seconds = "Seconds: evaluations times what one takes in benchmarks/peers.py, without tests and start."
    return lines + [seconds] * timed


def peer_tables(results: Path, name: str) -> list[Table]:
    study = Peers(results, name)
    made = [peers_table(study), equal_table(study), budget_table(study)]
    return [table for table in made if table is not None]


def peers_table(study: Peers) -> Table:
    """Every method from its default scale, tuned, and at its worst, at the same epochs."""

    def worst(row: Numbers) -> str:
        lost = f", diverged at {row['scales_diverged']} of {row['scales']}" * bool(row["scales_diverged"])
        return number("worst_error", ".2f")(row) + lost

    rows = rows_of(study, study.whole)
    others = [row for row in rows if not row["is_acme"]]
    acme = "; ".join(dict.fromkeys(row["acme"] for row in others if row["acme"]))
    words = (
        f"At the same epochs: peers from their default, tuned and worst of {len(study.scales)} scales, and "
    )
    words += f"ACME from its default, with the same base ({acme})"
    return table(
        "peers",
        "Beside peers",
        caption(words, study.whole_runs, "tuned", "differences", "cost"),
        rows,
        {
            **ERRORS,
            ("Error, %", "at"): lambda row: NOTHING if row["chosen"] is None else f"×{row['chosen']:g}",
            ("Error, %", "worst"): worst,
            ("", "Evaluations"): number("run_evaluations"),
            ("", "Seconds"): seconds("run_seconds"),
            ("", "Seeds"): lambda row: str(row["default_seeds"] + row["default_diverged"]),
            **{
                column: lambda row, text=text: NOTHING if row["is_acme"] else text(row)
                for column, text in DIFFERENCES.items()
            },
        },
        notes=how(study.of(study.whole), study.defaults) + lines_of(study, study.whole),
        summary=[ahead_of(others, side) for side in ("default", "tuned")],
    )


def ahead_of(rows: list[Numbers], side: str) -> str:
    differences = {row["optimizer"]: row[f"{side}_difference"] for row in rows}
    return ahead(f"ACME from its default is ahead of its {side} peers in", differences)


def equal_table(study: Peers) -> Table:
    """Every peer beside ACME at no more gradient evaluations, or about as many."""
    keys = [key for key in study.groups if not study.config(key).acme or about(key).rival]
    rows = rows_of(study, keys, equal=True)
    costs = [(row["acme_run_evaluations"], row["run_evaluations"]) for row in rows]
    no_more = all(acme <= own for acme, own in costs if acme and own)
    acme = "; ".join(dict.fromkeys(row["acme"] for row in rows if row["acme"]))
    words = f"At {'no more' if no_more else 'about as many'} gradient evaluations, those of a search not counted: peers, "
    words += f"and ACME from its default, with the same base ({acme})"
    return table(
        "peers_equal",
        "Beside peers, equal evaluations",
        caption(words, study.runs, "tuned", "differences", "cost"),
        rows,
        {
            **ERRORS,
            ("Error, %", "ACME"): error("acme_"),
            **DIFFERENCES,
            ("Evaluations", "without"): number("run_evaluations"),
            ("Evaluations", "ACME"): number("acme_run_evaluations"),
            ("Seconds", "without"): seconds("run_seconds"),
            ("Seconds", "ACME"): seconds("acme_run_seconds"),
        },
        notes=lines_of(study, list(study.groups)),
    )


def budget_table(study: Peers) -> Table | None:
    """The test error of a random search over the scales, for a number of evaluations in all."""
    one = min((cost for key in study.whole if (cost := study.cost(key))), default=0)
    budgets = [round(budget * one) for budget in BUDGETS]
    rows = []
    for key in study.whole:
        cost = study.cost(key)
        row: Numbers = {"optimizer": title(key), "run": cost, "seeds": len(study.searches(key))}
        for budget in budgets:
            runs = min(int(budget / cost + 1e-6), len(study.scales)) if cost else 0
            for way, outwards in (("random", False), ("outwards", True)):
                found = study.budget(key, runs, outwards) if runs else []
                row |= prefixed(f"{budget}_{way}_", spread(found))
        rows.append(row)
    if not any(row["seeds"] for row in rows):
        return None
    left_out = [
        f"Left out of the searches: {title(key)}, seed {seed}: not every scale has its run."
        for key in study.whole
        for seed in study.seeds
        if seed not in study.searches(key)
    ]
    words = (
        "What a user gets who does not know the scale, for a number of gradient evaluations in all: the error to be expected "
        "of the run with the lowest last-epoch validation error, of those that they pay for, at scales drawn without "
        f"replacement from {len(study.scales)} (after Dodge et al., Show Your Work, EMNLP 2019). A diverged run counts as "
        f"{study.chance:.3g} % and is chosen last. The CSV has a search from the default outwards too"
    )
    above = "Gradient evaluations"
    return table(
        "peers_budget",
        "Beside peers, search included",
        caption(words, study.whole_runs),
        rows,
        {
            **OPTIMIZER,
            (above, "a run"): number("run"),
            **{(above, f"{budget:,}"): error(f"{budget}_random_") for budget in budgets},
        },
        notes=lines_of(study, study.whole) + left_out,
    )


def one_scale(studies: Iterable[Peers], key: str) -> float:
    """The scale that is best on average over the studies, by validation error with the first seed."""
    searches = [next(iter(study.searches(key).values())) for study in studies]
    errors = [dict(zip(search.scales, search.validation, strict=True)) for search in searches]
    common = set.intersection(*map(set, errors))
    return min(common, key=lambda scale: sum(error[scale] for error in errors))


def overview_table(studies: Mapping[str, Peers]) -> Table:
    """Every method in every study: from its default scale, tuned, and from one scale drawn at random; AdamW also from
    the one that is best on average."""
    rows, lines = [], []
    for key in sorted({key for study in studies.values() for key in study.whole}, key=rank):
        row: Numbers = {"optimizer": title(key)}
        for task, study in studies.items():
            evaluations, tuned = study.cost(key), study.tuned(key)
            row[f"{task}_evaluations_a_step"] = evaluations and evaluations / study.cost(key, "steps")
            row |= prefixed(f"{task}_default_", numbers_of(study.group(key)))
            row |= prefixed(f"{task}_tuned_", numbers_of(study.group(key, tuned)))
            row |= {f"{task}_chosen": tuned, f"{task}_random_error": mean(study.budget(key, 1))}
        rows.append(row)
        if key == "adamw" and all(study.searches(key) for study in studies.values()):
            scale = one_scale(studies.values(), key)
            row = dict.fromkeys(row) | {"optimizer": f"{title(key)}, ×{scale:g} on all tasks"}
            for task, study in studies.items():
                row |= prefixed(f"{task}_tuned_", numbers_of(study.group(key, scale)))
            rows.append(row)

    def evaluations_a_step(row: Numbers) -> str:
        found = [value for task in studies if (value := row[f"{task}_evaluations_a_step"]) is not None]
        return " to ".join(dict.fromkeys(f"{end(found):.3g}" for end in (min, max) if found)) or NOTHING

    columns = {**OPTIMIZER, ("", "Evaluations a step"): evaluations_a_step}
    for task, study in studies.items():
        above = f"{task}, error in %"
        columns |= {(above, side): error(f"{task}_{side}_", digits=1) for side in ("default", "tuned")}
        columns[above, "random"] = number(f"{task}_random_error", ".1f")
        scale = f"{scale_of(study.whole_runs)}; {len(study.scales)} scales."
        lines += [f"{task}: {line}" for line in [scale, *lines_of(study, study.whole)]]
    words = (
        "ACME beside its peers: test error in % after the last epoch, mean ± standard deviation over seeds. Default: from "
        f"the default scale. {TERMS['tuned']} Random: to be expected of one run from a scale drawn at random from those "
        "over six decades; a diverged run counts as guessing. AdamW on all tasks: from that of the scales they share with "
        "the lowest mean validation error with the first seed, which learning-rate-free methods should be measured by "
        "(Kasimbeg et al., How far away are truly hyperparameter-free learning algorithms?, 2025)."
    )
    return table("overview", "Beside peers, on several tasks", words, rows, columns, notes=lines)
