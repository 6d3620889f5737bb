"""What the kernels and models are to reach on an H200 in bfloat16, and what a record says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastspeech.bench.plan import Row
from fastspeech.kernels.spec import Case

OURS = ("triton", "cuda", "fastspeech")

FRAMES = 438
"""Of CohereAsr's encoder for 35 s."""

OP_CASES: dict[str, tuple[Case, ...]] = {
    "relpos_attention": (Case("aim, batch 32", "model", {"batch": 32, "frames": FRAMES, "heads": 8, "dim": 160}),),
    "rope_attention": tuple(
        Case(
            f"aim, head of {head_dim}",
            "model",
            {"batch": 32, "frames": 1248, "heads": 8, "head_dim": head_dim, "pairs": pairs},
        )
        for head_dim, pairs in ((36, 16), (52, 16), (64, 32), (128, 64))
    ),
    "conformer_conv": (Case("aim, 64 clips", "model", {"batch": 64, "frames": FRAMES, "channels": 1280, "taps": 9}),),
    "residual_layer_norm": (Case("aim, 64 clips", "model", {"shape": (64, FRAMES, 1280), "scale": 0.5}),),
    "residual_rms_norm": (Case("aim, 16384 tokens", "model", {"shape": (16384, 1, 2048)}),),
    "paged_attention": (
        Case(
            "aim, kyutai 128 streams",
            "model",
            {
                "batch": 128,
                "tokens": 1,
                "heads": 32,
                "head_dim": 64,
                "page_size": 384,
                "positions": tuple(range(1000, 1128)),
                "pairs": 32,
                "window": 375,
            },
        ),
    ),
    "page_append": (
        Case(
            "aim, 64 streams x 375 tokens",
            "model",
            {
                "batch": 64,
                "tokens": 375,
                "heads": 32,
                "head_dim": 64,
                "page_size": 384,
                "positions": (0,) * 64,
                "pairs": 32,
            },
        ),
    ),
}
"""Cases of several times the L2, or of the shape that an aim names."""


class Rows:
    """Rows of a record, by what they measured."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)

    def best(self, contenders: Callable[[str], bool], /, **what: Any) -> Row | None:
        """The fastest row of such contenders that measured `what`."""
        found = [
            row
            for row in self._rows
            if "median_s" in row
            and contenders(row["contender"])
            and all(row.get(name) == value for name, value in what.items())
        ]
        return min(found, key=lambda row: row["median_s"], default=None)

    def ours(self, **what: Any) -> Row | None:
        return self.best(OURS.__contains__, **what)

    def gain(self, peers: str, /, **what: Any) -> float | None:
        """How often as fast ours is as the fastest peer whose name begins so."""
        ours, theirs = self.ours(**what), self.best(lambda name: name.startswith(peers), **what)
        return None if ours is None or theirs is None else theirs["median_s"] / ours["median_s"]

    def value(self, figure: str, /, **what: Any) -> float | None:
        """A figure of our row."""
        row = self.ours(**what)
        return None if row is None else row.get(figure)

    def streams(self, name: str) -> float | None:
        """How many live streams of a model held."""
        what = {"kind": "held", "name": name, "contender": "fastspeech"}
        held = (row for row in self._rows if what.items() <= row.items())
        return next((row["streams"] for row in held if "streams" in row), None)


@dataclass(frozen=True)
class Aim:
    """A figure to reach.

    Attributes:
        what: the figure, in words.
        target: it is to be at least this, or with `at_most` at most.
        unit: of both.
        part: of `python -m bench gpu`, which measures it.
        find: the figure in a record's rows; None where they lack it.
        bound: the best that the machine could do, where the issue names it.
    """

    what: str
    target: float
    unit: str
    part: str
    find: Callable[[Rows], float | None]
    at_most: bool = False
    bound: str = ""


def _share(op: str) -> Aim:
    case = OP_CASES[op][0].name
    return Aim(
        f"{op}, share of the measured copy bandwidth",
        85.0,
        "%",
        "ops",
        lambda rows: _percent(rows.value("bound_share", kind="op", name=op, case=case, timing="cold")),
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _gain(what: str, target: float, part: str, peers: str, /, **row: Any) -> Aim:
    return Aim(what, target, "x", part, lambda rows: rows.gain(peers, **row))


_COHERE = {"kind": "model", "name": "cohere 2B", "seconds": 35.0}
_FROM_SAMPLES = {"part": "end to end", **_COHERE}
_MOONSHINE = {"kind": "model", "name": "moonshine tiny", "seconds": 10.0}
_SPEECH = {"kind": "model", "name": "speech2text small", "part": "whole", "batch": 64}

AIMS = (
    *(
        _share(op)
        for op in ("conformer_conv", "residual_layer_norm", "residual_rms_norm", "paged_attention", "page_append")
    ),
    _gain(
        "relpos_attention, T 438, head dim 160, batch 32, over the materialised bias in SDPA",
        3.0,
        "ops",
        "materialised bias",
        kind="op",
        name="relpos_attention",
        case=OP_CASES["relpos_attention"][0].name,
        timing="cold",
    ),
    *(
        _gain(
            f"rope_attention, {case.name.removeprefix('aim, ')}, over flash SDPA at its nearest padded size",
            1.0,
            "ops",
            "flash SDPA",
            kind="op",
            name="rope_attention",
            case=case.name,
            timing="cold",
        )
        for case in OP_CASES["rope_attention"]
    ),
    Aim(
        "CohereAsr 2B, 35 s x 64, samples to tokens",
        6000.0,
        "x real time",
        "cohere",
        lambda rows: rows.value("realtime", batch=64, **_FROM_SAMPLES),
        bound="12,800",
    ),
    *(
        _gain(f"CohereAsr 2B, 35 s x 64, {which}, over transformers", 8.0, "cohere", "transformers", batch=64, **row)
        for which, row in (("samples to tokens", _FROM_SAMPLES), ("features to tokens", {"part": "whole", **_COHERE}))
    ),
    Aim(
        "CohereAsr 2B, 35 s x 1, samples to tokens",
        1500.0,
        "x real time",
        "cohere",
        lambda rows: rows.value("realtime", batch=1, **_FROM_SAMPLES),
        bound="3,100",
    ),
    Aim(
        "Moonshine tiny, one token, batch 1",
        40.0,
        "us",
        "small",
        lambda rows: _microseconds(rows.value("median_s", part="token", batch=1, **_MOONSHINE)),
        at_most=True,
        bound="8.6",
    ),
    Aim(
        "Moonshine tiny, 10 s x 1024",
        60000.0,
        "x real time",
        "small",
        lambda rows: rows.value("realtime", part="whole", batch=1024, **_MOONSHINE),
        bound="238,000",
    ),
    _gain("Speech2Text small, 5 beams, 10 s x 64, over transformers", 10.0, "small", "transformers", **_SPEECH),
    Aim(
        "Kyutai 1B, streams held at 80 ms",
        1200.0,
        "streams",
        "kyutai",
        lambda rows: rows.streams("kyutai 1B"),
        bound="1,419",
    ),
    Aim(
        "Kyutai 2.6B, streams held at 80 ms",
        800.0,
        "streams",
        "kyutai",
        lambda rows: rows.streams("kyutai 2.6B"),
        bound="924",
    ),
)


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e6 * seconds


def judged(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Of each aim what was measured, whether that meets it, and the share of the aim that was reached: above 1 it is
    met by so much. None where the rows lack the figure."""
    lookup = Rows(rows)
    table = []
    for aim in AIMS:
        measured = aim.find(lookup)
        reached = None
        if measured:
            reached = aim.target / measured if aim.at_most else measured / aim.target
        table.append(
            {
                "aim": aim.what,
                "target": aim.target,
                "at_most": aim.at_most,
                "unit": aim.unit,
                "bound": aim.bound,
                "part": aim.part,
                "measured": measured,
                "met": None if reached is None else reached >= 1,
                "reached": reached,
            }
        )
    return table
