"""What each key is called, in the order of the tables' rows, and how it is drawn.

A new kind of run needs one line here; without it it goes by its key, at the end of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito's palette, which colour-blind readers tell apart; brown and wine beside it are darker than all but black.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
BROWN, WINE, GREY = "#7A4A1E", "#882255", "#999999"


@dataclass(frozen=True)
class Title:
    text: str
    color: str = ""  #: of its line beside peers; none: in tables only
    marker: str = ""
    line: str = "-"
    timed: str = ""  #: the key whose step takes as long, where benchmarks/peers.py has not measured its own
    rival: bool = False  #: ACME, but among those that ACME is compared with at equal evaluations


TITLES = {
    "sgd-acme-kept-averaged": Title("SGD + ACME, α kept, averaged weights", BLUE, "D"),
    "adam-acme-kept-averaged": Title("Adam + ACME, α kept, averaged weights", BLUE, "D"),
    "adam-acme-kept-unbiased": Title("Adam + ACME, α kept, unbiased squares", BLACK, "D", ":", "adam-acme-kept"),
    "sgd-acme-kept": Title("SGD + ACME, α kept", BLACK, "D", ":"),
    "adam-acme-kept": Title("Adam + ACME, α kept"),
    "sgd-acme-averaged": Title("SGD + ACME, averaged weights", BLUE, "o"),
    "adam-acme-averaged": Title("Adam + ACME, averaged weights", BLUE, "o"),
    "adam-acme-unbiased": Title("Adam + ACME, unbiased squares", BLACK, "o", ":", "adam-acme-rare"),
    "sgd-acme-rare": Title("SGD + ACME, rare look-ahead", BLACK, "o", ":"),
    "adam-acme-rare": Title("Adam + ACME, rare look-ahead"),
    "sgd-acme": Title("SGD + ACME", SKY, "o", "--"),
    "adam-acme": Title("Adam + ACME", SKY, "o", "--"),
    "sgd-acme-kept-equal": Title("SGD + ACME, α kept, averaged weights, fewer steps", timed="sgd-acme-kept-averaged"),
    "adam-acme-kept-equal": Title("Adam + ACME, α kept, averaged weights, fewer steps", timed="adam-acme-kept-averaged"),
    "sgd-acme-equal": Title("SGD + ACME, averaged weights, fewer steps", timed="sgd-acme-averaged"),
    "adam-acme-equal": Title("Adam + ACME, averaged weights, fewer steps", timed="adam-acme-averaged"),
    "sgd-acme-half": Title("SGD + ACME, half the epochs", timed="sgd-acme", rival=True),
    "adam-acme-half": Title("Adam + ACME, half the epochs", timed="adam-acme", rival=True),
    "sgd": Title("SGD", VERMILLION, "s"),
    "adam": Title("Adam"),
    "adamw": Title("AdamW", VERMILLION, "s"),
    "schedulefree-sgd": Title("Schedule-free SGD", ORANGE, "^"),
    "schedulefree-adamw": Title("Schedule-free AdamW", ORANGE, "^"),
    "prodigy": Title("Prodigy", GREEN, "D", "-."),
    "dadapt-adam": Title("D-Adapt Adam", PURPLE, "v", "--"),
    "dog": Title("DoG", GREEN, "D", "-."),
    "sam": Title("SAM", PURPLE, "v", "--"),
    "asam": Title("ASAM", BROWN, "P", ":"),
    "momo": Title("MoMo", YELLOW, "X", "--"),
    "momo-adam": Title("MoMo-Adam", YELLOW, "X", "--"),
    "gen": Title("GeN-AdamW", BROWN, "P", ":"),
    "salsa": Title("SaLSa", WINE, "p", "--"),
}  # fmt: skip

PLUS = {"acme": "ACME", "asam": "ASAM", "nesterov": "Nesterov"}
"""What is added to a title."""
PAIRS = tuple(
    base + more for base in ("sgd", "adam") for more in ("", "-nesterov", "-asam", "-asam-nesterov")
)
"""The 8 optimizers of the table, each of which it has with ACME too: with `-acme` after its key."""


def about(key: str | None) -> Title:
    return TITLES.get(key, Title(str(key)))


def known(key: str) -> str:
    """The longest part of a key, from its beginning to a hyphen, that has a title; else nothing."""
    parts = key.split("-")
    beginnings = ("-".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((one for one in beginnings if one in TITLES), "")


def title(key: str) -> str:
    """The key's, else that of the longest known key that it begins with, and its rest: "SGD + ASAM, slower"."""
    one = known(key)
    rest = [word for word in key[len(one) :].split("-") if word]
    words = [f" + {PLUS[word]}" if word in PLUS else f", {word}" for word in rest]
    return TITLES[one].text + "".join(words) if one else key


def rank(key: str) -> tuple[int, str]:
    """The order of the rows."""
    return ([*TITLES, ""].index(known(key)), key)
