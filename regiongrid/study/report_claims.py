"""Four claims about regions in self-supervised learning, each tested in many ways that a fair reader could choose.

A `Finding` is one test: one data set, encoder, method, kind of slices and way to compare, its effect with Student's 95%
interval over seeds, and an outcome. ``for``: the whole interval is beyond the threshold of the claim; ``against``: the
whole interval is on the other side; ``open``: neither; ``untestable``: the condition of the claim is not given (too few
seeds, no comparable accuracy, no collapse). `judge` makes a verdict of all findings of a claim by a fixed rule.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from regiongrid.study.report_runs import (
    CONTRASTIVE,
    COUNTERPARTS,
    DATA_NAMES,
    DISTILLATION,
    GEOMETRY,
    NAMES,
    SUPERVISED,
    Array,
    Cell,
    Place,
    Track,
    cell_title,
)
from regiongrid.study.report_slices import Further
from regiongrid.study.report_statistics import Interval, predicted_range, spearman, t_interval

FOR, AGAINST, OPEN, UNTESTABLE = "for", "against", "open", "untestable"
SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_TESTED = "supported", "not supported", "undecided", "not tested"

LEAST_CORRELATION = 0.5
FEWER = 0.8
"""Substantially fewer regions: at most this share of the supervised network's."""
ACCURACY_GAP = 0.05
"""Comparable accuracy: kNN at most this much below the supervised network's."""
EXPANDED, MERGED = 1.1, 0.9
"""Regions expand or merge if their number becomes more, or less, than this multiple."""
EARLY = 0.2
"""Early: within this share of the training."""
COLLAPSED = 0.5
"""A run has collapsed if its effective rank ends below this share of its healthy counterpart's."""
RANGES = (0.95, 0.99)
"""Confidences of the prediction interval that a collapsing run has to leave."""
MOSTLY, HARDLY, REFUTES, DIVIDES = 0.9, 0.1, 1 / 2, 1 / 3
"""Shares for the verdict; see `judge`."""

COUNT, RANK, KNN = "regions/count", "quality/effective_rank", "quality/knn"
PATTERNS = "regions/pattern_rank"
SIGNS = {**GEOMETRY, PATTERNS: "rank of activation patterns"}
"""What a collapse may show in."""

FurtherOf = Callable[[Track], Sequence[Further]]


@dataclass(frozen=True)
class Claim:
    """A claim, how it is tested, and what its findings differ in.

    Attributes
    ----------
    scale
        ``ratio``: values are logarithms; ``rank correlation``, ``share of training``: as they are.
    main
        (variant, quantity) of the findings that the effect in the table is of.
    """

    key: str
    statement: str
    test: str
    scale: str
    main: tuple[str, str]


@dataclass(frozen=True)
class Finding:
    """One test of a claim.

    Attributes
    ----------
    values
        The effect by seed; logarithms where the claim's scale is a ratio.
    interval
        Mean and interval of them on the claim's scale.
    note
        What else has to be known to read it.
    """

    claim: str
    dataset: str
    encoder: str
    method: str
    place: Place
    variant: str
    quantity: str
    values: Mapping[int, float]
    interval: Interval
    outcome: str
    own: bool
    note: str = ""

    @property
    def slices(self) -> str:
        return self.place.slices

    @property
    def network(self) -> str:
        return self.place.network


@dataclass(frozen=True)
class Verdict:
    """What the findings of a claim amount to.

    Attributes
    ----------
    verdict
        ``supported``, ``not supported``, ``undecided``, ``depends on ...`` or ``not tested``.
    effects
        By data set and encoder: mean over methods of the main findings, interval over seeds.
    counts
        Findings by outcome.
    shares
        By factor and level: findings that are for the claim, and all that could be tested.
    """

    claim: Claim
    verdict: str
    effects: dict[str, Interval]
    counts: dict[str, int]
    shares: dict[str, dict[str, tuple[int, int]]]
    methods: dict[str, dict[str, Interval]]


UNTRAINED, TRAINED = "from the untrained network on", "from the first probe on"
END, MATCHED = "both at the end", "supervised when as accurate"
SINCE_START, SINCE_EARLY = "since the untrained network", "since early training"

CLAIMS = (
    Claim(
        "i", "The evolution of the regions correlates with the quality of the representation.",
        "Spearman's correlation along each run between the number of regions of a slice and the accuracy of kNN and "
        f"of the linear probe, with the untrained network and without. For: at least {LEAST_CORRELATION} in size, with "
        "the sign that most have.",
        "rank correlation", (TRAINED, "kNN accuracy"),
    ),
    Claim(
        "ii", "Self-supervised models make substantially fewer regions at comparable accuracy.",
        "Regions over those of the supervised network of the same seed, at the end, and against the supervised network "
        "at the first probe at which its kNN is as good. Testable if kNN is at most "
        f"{100 * ACCURACY_GAP:g} points below. For: a ratio below {FEWER}.",
        "ratio", (END, "regions of a slice"),
    ),
    Claim(
        "iii a", "Contrastive methods rapidly expand regions over time.",
        "Regions at the end over those of the untrained network, and over those early in training (after the first "
        f"epoch; on further slices the first kept encoder). For: a ratio above {EXPANDED}.",
        "ratio", (SINCE_EARLY, "regions of a slice"),
    ),
    Claim(
        "iii b", "Self-distillation methods merge regions over time.",
        f"The same ratio. For: below {MERGED}.",
        "ratio", (SINCE_EARLY, "regions of a slice"),
    ),
    Claim(
        "iv", "Collapse shows early in the geometry.",
        "The share of training after which a measure of the geometry leaves, for good, the 95% (99%) prediction "
        "interval of the healthy counterpart's seeds (1: never). Testable if the effective rank ends below "
        f"{COLLAPSED} of the counterpart's. For: at most {EARLY}.",
        "share of training", ("out of the 95% range", "regions of a slice"),
    ),
)  # fmt: skip

FACTORS = {
    "dataset": "data set", "encoder": "encoder", "method": "method", "slices": "slices", "network": "network",
    "variant": "comparison", "quantity": "quantity",
}  # fmt: skip


def find_all(cells: Sequence[Cell], further: FurtherOf) -> list[Finding]:
    """All findings of all claims.

    Parameters
    ----------
    further
        What was measured of a run on further slices; may be empty.
    """
    tests = (correlations, fewer_regions, changes, collapses)
    return _signed([finding for test in tests for cell in cells for finding in test(cell, further)])


def correlations(cell: Cell, further: FurtherOf) -> Iterator[Finding]:
    """Claim i, on the runs' own slices; the sign is settled by `find_all`."""
    for method in cell.healthy():
        for column, name in ((KNN, "kNN accuracy"), ("quality/linear", "linear probe")):
            for variant in (UNTRAINED, TRAINED):
                values = {}
                for track in cell.methods[method]:
                    used = np.isfinite(track[column]) & ((track.epoch > 0) | (variant == UNTRAINED))
                    values[track.config.seed] = spearman(track[COUNT][used], track[column][used])
                interval = t_interval(list(values.values())).clipped(-1.0, 1.0)
                yield Finding(
                    "i", cell.dataset, cell.encoder, method, cell.own_place, variant, name, values, interval,
                    UNTESTABLE if interval.seeds < 2 else OPEN, own=True,
                )  # fmt: skip


def _signed(findings: Sequence[Finding]) -> list[Finding]:
    """Outcomes of claim i: the sign that most of the findings with a sure sign have is the claim's."""
    tested = [f for f in findings if f.claim == "i" and f.outcome != UNTESTABLE]
    signs = [math.copysign(1, f.interval.mean) for f in tested if f.interval.low > 0 or f.interval.high < 0]
    sign = -1.0 if sum(signs) < 0 else 1.0

    def outcome(interval: Interval) -> str:
        low, high = sorted((sign * interval.low, sign * interval.high))
        if low > 0 and sign * interval.mean >= LEAST_CORRELATION:
            return FOR
        return AGAINST if high < LEAST_CORRELATION else OPEN

    return [
        replace(f, outcome=outcome(f.interval)) if f.claim == "i" and f.outcome != UNTESTABLE else f for f in findings
    ]


def fewer_regions(cell: Cell, further: FurtherOf) -> Iterator[Finding]:
    """Claim ii."""
    supervised = {track.config.seed: track for track in cell.methods.get(SUPERVISED, [])}
    for method in cell.self_supervised():
        pairs = [(track, supervised[track.config.seed]) for track in cell.methods[method]
                 if track.config.seed in supervised]  # fmt: skip
        ends = {own.config.seed: (own, other, len(other.epoch) - 1) for own, other in pairs}
        matched = {own.config.seed: (own, other, _as_accurate(other, own[KNN][-1])) for own, other in pairs}
        for variant, rows in ((END, ends), (MATCHED, matched)):
            values = {seed: math.log(own[COUNT][-1] / other[COUNT][row]) for seed, (own, other, row) in rows.items()}
            gap = _mean(other[KNN][row] - own[KNN][-1] for own, other, row in rows.values())
            when = _mean(other.epoch[row] for _, other, row in rows.values())
            note = f"kNN {-gap:+.3f} against supervised at epoch {when:.3g}"
            yield _ratio("ii", cell, method, cell.own_place, variant, values, "below", FEWER, gap > ACCURACY_GAP, note)
        gap = _mean(other[KNN][-1] - own[KNN][-1] for own, other in pairs)
        note = f"kNN {-gap:+.3f} against supervised"
        for place, values in _further_ratios([(own, -1, other, -1) for own, other in pairs], further).items():
            yield _ratio("ii", cell, method, place, END, values, "below", FEWER, gap > ACCURACY_GAP, note, own=False)


def _as_accurate(track: Track, accuracy: float) -> int:
    """The first probed measurement behind the start with at least that kNN accuracy, the last if there is none."""
    rows = np.flatnonzero((track[KNN] >= accuracy) & (track.epoch > 0))
    return int(rows[0]) if rows.size else len(track.epoch) - 1


def changes(cell: Cell, further: FurtherOf) -> Iterator[Finding]:
    """Claims iii a and iii b."""
    for key, methods, side, limit in (
        ("iii a", CONTRASTIVE, "above", EXPANDED),
        ("iii b", DISTILLATION, "below", MERGED),
    ):
        for method in (name for name in methods if name in cell.methods):
            tracks = cell.methods[method]
            for variant, epoch, kept in ((SINCE_START, 0, 0), (SINCE_EARLY, 1, 1)):
                values = {}
                for track in tracks:
                    start = int(np.flatnonzero(track.epoch >= epoch)[0])
                    values[track.config.seed] = math.log(track[COUNT][-1] / track[COUNT][start])
                late = "" if tracks[0].config.epochs > 1 or not epoch else "runs of one epoch"
                yield _ratio(key, cell, method, cell.own_place, variant, values, side, limit, bool(late), late)
                rows = [(track, -1, track, kept) for track in tracks]
                for place, ratios in _further_ratios(rows, further).items():
                    yield _ratio(key, cell, method, place, variant, ratios, side, limit, own=False)


def _further_ratios(rows: Sequence[tuple[Track, int, Track, int]], further: FurtherOf) -> dict[Place, dict[int, float]]:
    """Logarithms of ratios of regions by place and seed; rows: a run and which of its epochs, over another."""
    found: dict[Place, dict[int, float]] = {}
    for own, first, other, second in rows:
        above, below = (_by_place(further(track)) for track in (own, other))
        for place in above:
            if place in below and len(below[place]) > max(second + 1, 1):  # a start that is not the end
                one, two = above[place], below[place]
                ratio = math.log(one[sorted(one)[first]] / two[sorted(two)[second]])
                found.setdefault(place, {})[own.config.seed] = ratio
    return found


def _by_place(rows: Sequence[Further]) -> dict[Place, dict[int, float]]:
    """Number of regions by place and epoch."""
    found: dict[Place, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row.place, {})[row.epoch] = row.values[COUNT]
    return found


def _ratio(
    claim: str, cell: Cell, method: str, place: Place, variant: str, values: Mapping[int, float], side: str,
    limit: float, untestable: bool = False, note: str = "", own: bool = True,
) -> Finding:  # fmt: skip
    interval = t_interval(list(values.values()))
    outcome = _beyond(interval, math.log(limit), side)
    if untestable:
        outcome = UNTESTABLE
    return Finding(
        claim, cell.dataset, cell.encoder, method, place, variant, "regions of a slice", values,
        interval.map(math.exp), outcome, own, note,
    )  # fmt: skip


def _beyond(interval: Interval, limit: float, side: str) -> str:
    """Whether all of an interval is beyond a limit, on the other side, or neither."""
    if interval.seeds < 2:
        return UNTESTABLE
    below, above = interval.high < limit, interval.low > limit
    if side == "above":
        below, above = above, below
    return FOR if below else AGAINST if above else OPEN


@dataclass(frozen=True, eq=False)
class Onset:
    """When the runs of a condition leave the range of their healthy counterpart for good.

    Attributes
    ----------
    epochs
        By seed; infinite where that never happens.
    false_alarms, healthy
        Healthy runs that leave the range of the other ones for good, out of how many.
    """

    condition: str
    column: str
    epochs: dict[int, float]
    false_alarms: int
    healthy: int


def onsets(cell: Cell, condition: str, columns: Sequence[str], confidence: float = RANGES[0]) -> list[Onset]:
    """Onset of collapse by column; empty without runs of the healthy counterpart.

    Parameters
    ----------
    confidence
        Of the prediction interval that healthy runs make.
    """
    healthy = cell.methods.get(COUNTERPARTS[condition], [])
    found = []
    for column in columns:
        known = [track for track in healthy if column in track.history]
        if not known or not all(column in track.history for track in cell.methods[condition]):
            continue
        reference = [_logarithm(track[column]) for track in known]
        epoch = known[0].epoch
        times = {
            track.config.seed: _leaves(_logarithm(track[column]), np.stack(reference), epoch, confidence)
            for track in cell.methods[condition]
        }
        alarms = 0
        if len(reference) > 2:
            others = [np.stack([*reference[:i], *reference[i + 1 :]]) for i in range(len(reference))]
            alarms = sum(math.isfinite(_leaves(own, rest, epoch, confidence)) for own, rest in zip(reference, others))
        found.append(Onset(condition, column, times, alarms, len(known)))
    return found


def _logarithm(values: Array) -> Array:
    return np.log(np.maximum(values, 1e-12))


def _leaves(values: Array, reference: Array, epoch: Array, confidence: float) -> float:
    """The epoch from which on all values are outside the predicted range of the reference, or infinity."""
    low, high = predicted_range(reference, confidence)
    inside = np.flatnonzero(~((values < low) | (values > high)))
    first = int(inside[-1]) + 1 if inside.size else 0
    return float(epoch[first]) if first < len(epoch) else math.inf


def collapses(cell: Cell, further: FurtherOf) -> Iterator[Finding]:
    """Claim iv."""
    for condition in (method for method in cell.methods if method in COUNTERPARTS):
        tracks, healthy = cell.methods[condition], cell.methods.get(COUNTERPARTS[condition], [])
        if not healthy:
            continue
        ranks = [_mean(track[RANK][-1] for track in some) for some in (tracks, healthy)]
        for confidence in RANGES:
            (reference,) = onsets(cell, condition, [RANK], confidence)
            for onset in onsets(cell, condition, list(SIGNS), confidence):
                values = {seed: min(epoch / cell.config.epochs, 1.0) for seed, epoch in onset.epochs.items()}
                interval = t_interval(list(values.values())).clipped(0.0, 1.0)
                outcome = _beyond(interval, math.nextafter(EARLY, 1), "below")
                if ranks[0] > COLLAPSED * ranks[1] or len(healthy) < 2:
                    outcome = UNTESTABLE
                note = (
                    f"effective rank ends at {ranks[0]:.3g} ({ranks[1]:.3g} healthy) and leaves the range at epoch "
                    f"{_mean(reference.epochs.values()):.3g}; false alarms {onset.false_alarms} of {onset.healthy}"
                )
                yield Finding(
                    "iv", cell.dataset, cell.encoder, condition, cell.own_place,
                    f"out of the {100 * confidence:g}% range", SIGNS[onset.column], values, interval, outcome, True,
                    note,
                )  # fmt: skip


def judge(claim: Claim, findings: Sequence[Finding]) -> Verdict:
    """The verdict on a claim.

    Of the findings that could be tested: ``supported`` if at least 9 in 10 are for it and none is against it. Where at
    most 1 in 10 is for it: ``not supported`` if at least half are against it, else ``undecided``. Else ``depends on``
    the factors between whose levels the share of findings that are for it differs by a third or more (the factor with
    the largest difference if none reaches that).

    >>> judge(CLAIMS[0], []).verdict
    'not tested'
    """
    own = [finding for finding in findings if finding.claim == claim.key]
    tested = [finding for finding in own if finding.outcome != UNTESTABLE]
    counts = Counter(finding.outcome for finding in own)
    shares = {factor: _shares(tested, factor) for factor in FACTORS}
    main = [finding for finding in own if finding.own and (finding.variant, finding.quantity) == claim.main]
    return Verdict(
        claim,
        _verdict(counts, len(tested), shares),
        {name: _mean_effect(some, claim) for name, some in _by_cell(main).items()},
        {outcome: counts[outcome] for outcome in (FOR, AGAINST, OPEN, UNTESTABLE)},
        shares,
        {name: {f.method: f.interval for f in some} for name, some in _by_cell(main).items()},
    )


def _verdict(counts: Counter[str], tested: int, shares: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    if not tested:
        return NOT_TESTED
    if counts[FOR] >= MOSTLY * tested and not counts[AGAINST]:
        return SUPPORTED
    if counts[FOR] <= HARDLY * tested:
        return NOT_SUPPORTED if counts[AGAINST] >= REFUTES * tested else UNDECIDED
    spread = {}
    for factor, levels in shares.items():
        parts = [some / all_ for some, all_ in levels.values()]
        spread[factor] = max(parts) - min(parts)
    named = [factor for factor in spread if spread[factor] >= DIVIDES] or [max(spread, key=lambda f: spread[f])]
    if spread[named[0]] == 0:
        return "mixed, alike in all respects"
    names = [FACTORS[factor] for factor in named]
    return "depends on " + (", ".join(names[:-1]) + " and " if len(names) > 1 else "") + names[-1]


def _shares(findings: Sequence[Finding], factor: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for finding in findings:
        level = getattr(finding, factor)
        level = NAMES.get(level, DATA_NAMES.get(level, level))
        some, all_ = found.get(level, (0, 0))
        found[level] = (some + (finding.outcome == FOR), all_ + 1)
    return found


def _by_cell(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(cell_title(finding.dataset, finding.encoder), []).append(finding)
    return found


def _mean_effect(findings: Sequence[Finding], claim: Claim) -> Interval:
    """Mean over methods for each seed that all have, then the interval over seeds."""
    seeds = sorted(set.intersection(*(set(finding.values) for finding in findings)))
    interval = t_interval([_mean(finding.values[seed] for finding in findings) for seed in seeds])
    if claim.scale == "ratio":
        return interval.map(math.exp)
    return interval.clipped(-1.0 if claim.scale == "rank correlation" else 0.0, 1.0)


def _mean(values: Iterable[float]) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan
