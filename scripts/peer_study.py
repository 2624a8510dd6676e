"""ACME beside its peers: the runs of `results/<study>/peers`, what a user who searches gets, and at what price.

Shared by the tables and the figures of the peers. Everything comes from the runs' CSVs and JSONs; torch is never
imported.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from study import Group, UsageError, caption_of, chance_of, load_folder

from icassp25.config import RunConfig
from icassp25.peers import ACME, ACME_LR, PEERS, default_lr
from icassp25.runlog import Run

ADAM_LR = 0.001  # ACME's initial step size with Adam in the sweeps: Adam's customary default
KEPT = {"gain": 2.0, "adapt_steps": 60, "search_steps": 20}
"""How ACME is used at about one evaluation a step (docs/price.md); else these options are the published ones."""
RARE = {"gain": 2.0, "adapt_every": 10, "search_steps": 20}
"""How it was used before there was `adapt_steps`, in the committed runs."""
UNBIASED = {"unbiased_squares": True}
"""With either, Adam's squared average begun where bias correction expects it."""
AVERAGED = {"no_annealing": False, "anneal_over": 1.5, "average_weights": True}
"""Beside either: averaged weights, of steps that are annealed to a quarter."""
EQUAL = {"limit_train_batches": 0.83}
"""Besides: so many steps that they take no more evaluations than one in each of all the steps does."""
PUBLISHED = {
    field.name: field.default
    for field in fields(RunConfig)
    if field.name in {**KEPT, **RARE, **UNBIASED, **AVERAGED, **EQUAL}
}
"""The same options, as they are published."""


@dataclass(frozen=True)
class Method:
    """A row of the tables, a line of the figures. ACME is there with a step size that is kept, and with rare look-aheads
    (each with Adam also with unbiased squares, and with averaged weights besides), as published, and in two ways for fewer
    steps, with averaged weights and as published."""

    key: str
    title: str
    family: str  #: SGD or Adam: which of the two with ACME it is compared with
    default: float  #: the value of `--lr` whose multiples are tried
    scale: str
    how: str
    source: str
    acme: bool = False
    shortened: bool = False  #: for no more evaluations than one in each step; from the default only
    cheap: str = ""  #: how ACME takes about one evaluation a step, "kept" or "rare"; else none


def _peer_methods() -> list[Method]:
    return [
        Method(
            name,
            peer.title,
            "Adam" if peer.family == "adam" else "SGD",
            peer.default,
            peer.scale,
            f"{peer.how}; weight decay {peer.decay}",
            peer.source,
        )
        for name, peer in PEERS.items()
    ]


def _acme_methods() -> list[Method]:
    decay = "weight decay decoupled"
    own = f"no schedule but ACME's own annealing; {decay}"
    rarely, share = "about 1.1 evaluations a step", EQUAL["limit_train_batches"]
    averaged = f"{rarely}; ACME's own annealing to a quarter, tested at the polynomial-decay average of the weights; {decay}"

    def cheap(
        way: str, mark: str, words: str, alone: str, options: dict[str, float]
    ) -> list[tuple[str, ...]]:
        text = ", ".join(f"{name} {value:g}" for name, value in options.items())
        with_adam = f"{text}, with Adam unbiased_squares: {averaged}"
        return [
            (way, f"{mark}-averaged", f"{words}, averaged weights", with_adam),
            (
                way,
                f"{mark}-unbiased",
                f"{words}, unbiased squares",
                f"{text}, unbiased_squares: {rarely}; {own}",
            ),
            (way, f"-{way}", alone, f"{text}: {rarely}; {own}"),
            (way, f"{mark}-equal", f"{words}, averaged weights, {share:g} of the steps", with_adam),
        ]

    *kept, kept_equal = cheap("kept", "-kept", ", step size kept", ", step size kept", KEPT)
    *rare, rare_equal = cheap("rare", "", "", ", rare look-ahead", RARE)
    ways = (
        *kept,
        *rare,
        ("", "", "", f"as published, two evaluations a step; {own}"),
        kept_equal,
        rare_equal,
        ("", "-half", ", half the epochs", f"as published, two evaluations a step; {own}"),
    )
    return [
        Method(
            f"{family.lower()}-acme{suffix}",
            f"{family} + ACME{words}",
            family,
            default,
            "initial step size",
            how,
            "this repository",
            acme=True,
            shortened=suffix.endswith(("-equal", "-half")),
            cheap=way,
        )
        for way, suffix, words, how in ways
        for family, default in (("SGD", ACME_LR), ("Adam", ADAM_LR))
        if family == "Adam" or not suffix.endswith("-unbiased")
    ]


METHODS = {method.key: method for method in (*_acme_methods(), *_peer_methods())}


@dataclass(frozen=True)
class Search:
    """One seed's runs of a method over the scales: what the user sees who searches, and who does not.

    `scales` are multiples of the default in ascending order; diverged runs have a validation error of infinity and
    the test error of guessing.
    """

    scales: tuple[float, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]

    def expected(self, draws: int) -> float:
        """Expected test error of the best by validation of `draws` scales, drawn without replacement.

        With the n scales in ascending order of validation error, the best of k is the i-th (from 1) with probability
        C(n − i, k − 1) / C(n, k): Dodge et al., Show Your Work (EMNLP 2019), there with replacement.
        """
        n = len(self.scales)
        order = sorted(range(n), key=lambda i: self.validation[i])
        ways = math.comb(n, draws)
        return sum(
            math.comb(n - rank, draws - 1) / ways * self.test[i] for rank, i in enumerate(order, start=1)
        )

    def outwards(self, draws: int) -> float:
        """Test error of the best by validation of the `draws` scales nearest to the default, the smaller first."""
        order = sorted(
            range(len(self.scales)), key=lambda i: (round(abs(math.log10(self.scales[i])), 6), self.scales[i])
        )
        return self.test[min(order[:draws], key=lambda i: self.validation[i])]


@dataclass(frozen=True)
class PeerStudy:
    """The runs by method, scale (multiple of the method's default) and seed, and what was left out and why."""

    runs: dict[str, dict[float, dict[int, Run]]]
    caption: str
    whole_caption: str  #: without the shortened runs
    seeds: list[int]
    left_out: list[str]
    chance: float  #: test error, in %, of guessing
    model: str
    step_seconds: dict[str, float]  #: by method, of benchmarks/peers.py; empty if not measured

    @property
    def methods(self) -> list[Method]:
        return [_for_model(method, self.model) for method in METHODS.values() if method.key in self.runs]

    @property
    def whole_methods(self) -> list[Method]:
        """Those whose runs are as long as the study's, from all scales."""
        return [method for method in self.methods if not method.shortened]

    @property
    def cheap(self) -> list[str]:
        """The ways in which ACME takes about one evaluation a step here."""
        there = dict.fromkeys(METHODS[key].cheap for key in METHODS if key in self.runs)
        return [way for way in there if way] or ["kept"]

    @property
    def scales(self) -> list[float]:
        return sorted({scale for by_scale in self.runs.values() for scale in by_scale})

    def group(self, key: str, scale: float) -> Group:
        return Group(self.runs.get(key, {}).get(scale, {}).values())

    def default(self, key: str) -> Group:
        return self.group(key, 1.0)

    def whole(self, key: str, seed: int) -> dict[float, Run]:
        """A seed's run from every scale of the study; empty if one is missing."""
        runs = {scale: runs[seed] for scale, runs in self.runs.get(key, {}).items() if seed in runs}
        return runs if len(runs) == len(self.scales) else {}

    def search(self, key: str, seed: int) -> Search | None:
        """None if a scale is missing, or no images were held out."""
        runs = self.whole(key, seed)
        if not runs or not all(run.config.validation for run in runs.values()):
            return None

        def last(run: Run, column: str, lost: float) -> float:
            return lost if run.diverged else 100 * float(run.frame[column].iloc[-1])

        scales = tuple(sorted(runs))
        return Search(
            scales,
            tuple(last(runs[scale], "validation_error", math.inf) for scale in scales),
            tuple(last(runs[scale], "test_error", self.chance) for scale in scales),
        )

    def searches(self, key: str) -> dict[int, Search]:
        found = {seed: self.search(key, seed) for seed in self.seeds}
        return {seed: search for seed, search in found.items() if search is not None}

    def tuned(self, key: str) -> tuple[Group, float | None]:
        """The runs from the scale of lowest validation error with the first seed that has all, and that scale."""
        search = next(iter(self.searches(key).values()), None)
        if search is None:
            return Group(), None
        best = min(range(len(search.scales)), key=lambda i: search.validation[i])
        return self.group(key, search.scales[best]), search.scales[best]

    def cost(self, key: str, column: str = "evaluations") -> float | None:
        """What a run takes: the mean of the last `column` over the runs that did not diverge.

        Seconds are those that the steps take in the benchmark, if it has measured this study, else the runs' own.
        """
        if column == "seconds" and self.step_seconds:
            timed = key.removesuffix("-half").replace("-equal", "-averaged")
            # What differs in the averages' first values alone takes as long.
            if timed not in self.step_seconds:
                timed = timed.replace("-kept-unbiased", "-kept").replace("-unbiased", "-rare")
            steps, step = self.cost(key, "steps"), self.step_seconds.get(timed)
            return steps * step if steps is not None and step is not None else None
        values = [
            float(run.frame[column].iloc[-1])
            for by_seed in self.runs.get(key, {}).values()
            for run in by_seed.values()
            if not run.diverged
        ]
        return statistics.fmean(values) if values else None

    def budget(self, key: str, draws: int, outwards: bool = False) -> list[float]:
        """Test error of a search of `draws` runs, by seed."""
        searches = self.searches(key).values()
        return [search.outwards(draws) if outwards else search.expected(draws) for search in searches]

    def counterpart(self, method: Method, equal: bool = False) -> Method:
        """ACME with the same base and about as many evaluations in as many epochs; of the ways with about one a step the
        first that has been run from its default: averaged weights, unbiased squares, neither. `equal`: before these
        averaged weights for so many steps that there are no more evaluations."""
        base = f"{method.family.lower()}-acme"
        if method.key in PEERS and PEERS[method.key].evaluations > 1:
            return METHODS[base]
        ways = [key for key, other in METHODS.items() if other.cheap in self.cheap and key.startswith(base)]
        ways = [key for key in ways if not METHODS[key].shortened]
        if equal:
            ways = [f"{base}-kept-equal", f"{base}-equal", *ways]
        return METHODS[next((key for key in ways if self.runs.get(key, {}).get(1.0)), ways[-1])]

    def missing(self, shortened: bool = False) -> list[str]:
        """What the sweep would still run; `shortened`: those runs, too."""
        notes = []
        for method in METHODS.values():
            if (method.shortened and not shortened) or (method.cheap and method.cheap not in self.cheap):
                continue
            scales = [1.0] if method.shortened else self.scales
            wanted = len(scales) * len(self.seeds)
            there = sum(len(self.runs.get(method.key, {}).get(scale, {})) for scale in scales)
            if there < wanted:
                notes.append(f"Missing: {method.title}, {wanted - there} of {wanted} runs.")
        return notes

    def diverged(self) -> list[str]:
        notes = []
        for method in self.methods:
            lost = {scale: len(self.group(method.key, scale).diverged) for scale in self.scales}
            where = ", ".join(f"×{scale:g} ({count})" for scale, count in lost.items() if count)
            if where:
                notes.append(f"Diverged: {method.title}, {where}.")
        return notes


def load_peers(results: Path, study: str) -> PeerStudy:
    """The runs of `results/<study>/peers`.

    Raises:
        UsageError: no finished run there, or no telling which scale of runs is meant.
    """
    folder = results / study / "peers"
    found, left_out = load_folder(folder, frozenset({"optimizer", "epochs", *PUBLISHED}))
    epochs = max(run.config.epochs for run in found)
    runs: dict[str, dict[float, dict[int, Run]]] = {}
    kept = []
    for run in found:
        method = _method(run.config, epochs)
        if method is None:
            left_out.append(f"{run.path.name} is left out: not one of the sweep's runs.")
            continue
        scale = float(f"{run.config.lr / _for_model(method, run.config.model).default:.6g}")
        by_seed = runs.setdefault(method.key, {}).setdefault(scale, {})
        if run.config.seed in by_seed:
            twin = by_seed[run.config.seed]
            left_out.append(f"{run.path.name} is left out: the same run as {twin.path.name}.")
            continue
        by_seed[run.config.seed] = run
        kept.append(run)
    if not kept:
        raise UsageError(f"{folder} holds no run of the sweep. {' '.join(left_out)}")
    seeds = sorted({run.config.seed for run in kept})
    ordered = {key: dict(sorted(runs[key].items())) for key in METHODS if key in runs}
    whole = [run for run in kept if run.config.epochs == epochs and run.config.limit_train_batches == 1]
    return PeerStudy(
        ordered,
        caption_of(kept),
        caption_of(whole),
        seeds,
        sorted(left_out),
        chance_of(kept[0]),
        kept[0].config.model,
        _step_seconds(results / "benchmarks" / f"peers-{study}.csv"),
    )


def _step_seconds(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["optimizer"]: float(row["step_ms"]) / 1000 for row in csv.DictReader(file)}


def _for_model(method: Method, model: str) -> Method:
    """The method with the default that it has for a model."""
    return replace(method, default=default_lr(method.key, model)) if method.key in PEERS else method


def _method(config: RunConfig, epochs: int) -> Method | None:
    """Which method a run belongs to, where whole runs have `epochs`."""
    own = {name: getattr(config, name) for name in PUBLISHED}
    if config.optimizer != ACME:
        return METHODS[config.optimizer] if config.epochs == epochs and own == PUBLISHED else None
    if not config.acme or config.asam or config.nesterov or config.epochs not in (epochs, (epochs + 1) // 2):
        return None
    ways = {"": PUBLISHED}
    for way, mark, options in (("-kept", "-kept", KEPT), ("-rare", "", RARE)):
        ways[way] = {**PUBLISHED, **options}
        best = {**ways[way], **(UNBIASED if config.adam else {})}
        ways[f"{mark}-averaged"] = {**best, **AVERAGED}
        ways[f"{mark}-equal"] = {**best, **AVERAGED, **EQUAL}
        if config.adam:
            ways[f"{mark}-unbiased"] = best
    suffix = next((suffix for suffix, options in ways.items() if options == own), None)
    if config.epochs != epochs:
        suffix = "-half" if suffix == "" else None
    return None if suffix is None else METHODS[f"{'adam' if config.adam else 'sgd'}-acme{suffix}"]


def spread(values: Sequence[float]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation (None below two values) of a list that may be empty."""
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
