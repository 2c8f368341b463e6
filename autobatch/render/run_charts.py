"""What a run of `tune` shows when it is drawn: the race, the landscape, speed and memory, the seeds, the time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from ..core.json_reader import Json
from ..core.plan import LEAST_LR, MOST_LR, MOST_SAMPLES
from ..core.units import format_duration, format_size
from ..reports.report import Report
from ..reports.trial_table import is_config_of
from ..searching.verdict.confirmation import ScoreSummary
from .content import baseline_name, batch_text, decimals_of, last_score, share_done, state_text
from .curves import by_size, limit_level, series_table, speed_point
from .document import Across, Chart, Column, Estimate, Intervals, Point, Series, Shares, Table, Unit
from .drawing import COLORS
from .numbers import capitalized, count_text, lr_text, score_text, share_text, speed_text

# Slots: eight colours by five shapes (drawing.py).
_BASELINE, _CHOSEN, _OTHER = 0, 1, 6
_LANDSCAPE = (0, 16, 32, 8, 40)  # one colour, a shape for each rung, the furthest first
_FAILED = 9  # a cross in another colour
_FAINTEST = 0.2  # the weight of the worst of a group. Assumed: it is still seen.
# Scores that lie further from the best than so many times the median one does are drawn at the edge: else a loss that
# blew up would flatten all others. Assumed.
_FAR = 3.0
# No figure of a run is near this, and what lies between can be drawn. Assumed.
_LARGEST = 1e30
_WIDE = 1.96  # standard errors to either side hold 95 % of a normal distribution


def score_chart(report: Report, horizon_s: float) -> Chart:
    """The score of each trial over its training time, up to T: those of one time compare."""
    name = "yours" if report.baseline_is_users else "the default"
    kinds: dict[str, tuple[int, bool]] = {"others": (_OTHER, True), name: (_BASELINE, False), "this": (_CHOSEN, False)}
    lines: dict[str, list[Series]] = {kind: [] for kind in kinds}
    for number, trial in enumerate(report.trials):
        points = tuple(
            Point(x=horizon_s * step / trial["total_steps"], value=score, note=_trial_text(number, trial))
            for step, score in trial["scores"]
            if abs(score) <= _LARGEST and 0 <= step <= trial["total_steps"]
        )
        kind = "others"
        if is_config_of(trial, report.baseline_plan):
            kind = name
        elif is_config_of(trial, report.config):
            kind = "this"
        slot, is_faint = kinds[kind]
        if points:
            lines[kind].append(Series(name=kind, slot=slot, points=points, is_faint=is_faint))
    series = tuple(line for kind in kinds for line in lines[kind])
    raced = [trial for trial in report.trials if trial["role"] != "confirmation"]
    finals = [last_score(trial) for trial in raced if trial["state"] == "complete"]
    better = "higher" if report.direction == "maximize" else "lower"
    finding = f"Each line is a trial, with a point where it was scored; {better} is better."
    if finals:
        best = score_text(max(finals, key=report.oriented), decimals_of(report))
        of = count_text(len(finals), "trial")
        finding += f" At T = {format_duration(horizon_s)} the best of {of} scored {best}."
    within = _within(report, series)
    if within is not None and any(not within[0] <= p.value <= within[1] for s in series for p in s.points):
        finding += " Scores far behind the others are drawn at the edge."
    return Chart(
        title="Score over training time",
        finding=finding,
        unit="score",
        series=series,
        across="training time",
        within=within,
        table=_trial_table(report),
    )


def _within(report: Report, series: Sequence[Series]) -> tuple[float, float] | None:
    """The scores that the scale reaches to: those that matter, and all that are not far behind the median."""
    scores = [report.oriented(point.value) for one in series for point in one.points]
    if not scores:
        return None
    best = max(scores)
    behind = _FAR * (best - median(scores))
    kept = [point.value for one in series if not one.is_faint for point in one.points]
    kept += [report.oriented(score) for score in scores if best - score <= behind]
    return min(kept), max(kept)


def _trial_text(number: int, trial: Json) -> str:
    return f"trial {trial.get('number', number)}, batch {batch_text(trial)} at {lr_text(trial['lr'])}"


def _trial_table(report: Report) -> Table:
    """Every trial, as it was started."""
    decimals = decimals_of(report)
    columns = (
        Column(title="trial", is_number=True),
        Column(title="batch x acc."),
        Column(title="lr", is_number=True),
        Column(title="trained", is_number=True),
        Column(title="score", is_number=True),
        Column(title="state"),
        Column(title="role"),
    )
    rows = tuple(
        (
            str(trial.get("number", number)),
            batch_text(trial),
            lr_text(trial["lr"]),
            share_text(share_done(trial)),
            score_text(last_score(trial) if trial["scores"] else None, decimals),
            state_text(trial),
            str(trial["role"]),
        )
        for number, trial in enumerate(report.trials)
    )
    return Table(columns=columns, rows=rows, caption="Every trial; trained is the share of T that its score stands for")


def landscape_chart(report: Report) -> Chart:
    """What was tried of batches and rates: a shape for how far it was trained, the stronger the better within those."""
    raced = [trial for trial in report.trials if trial["role"] != "confirmation" and _can_be_placed(trial)]
    rungs = sorted({round(16 * share_done(trial)) for trial in raced if trial["scores"]}, reverse=True)
    series = []
    for rung, slot in zip(_few(rungs), _LANDSCAPE, strict=False):
        group = [t for t in raced if t["scores"] and _few_of(round(16 * share_done(t)), rungs) == rung]
        ranked = sorted(group, key=lambda trial: report.oriented(last_score(trial)))
        points = [
            Point(
                x=_samples(trial),
                value=trial["lr"],
                weight=_FAINTEST + (1 - _FAINTEST) * (place + 1) / len(ranked),
                note=f"{last_score(trial):.5g} after {share_text(share_done(trial))} of T",
            )
            for place, trial in enumerate(ranked)
        ]
        series.append(_spots(f"trained to {_rung_text(rung)}", slot, points))
    failed = [trial for trial in raced if not trial["scores"] and trial["state"] == "failed"]
    spots = [Point(x=_samples(trial), value=trial["lr"], note=state_text(trial)) for trial in failed]
    series.append(_spots("failed", _FAILED, spots))
    own = "yours" if report.baseline_is_users else "default"
    for word, config in ((own, report.baseline_plan), ("chosen", report.config)):
        place = Point(x=config.plan.effective_batch_size, value=config.lr)
        series.append(_spots(word, _BASELINE if word == own else _CHOSEN, [place], word))
    tried = len({(_samples(trial), trial["lr"]) for trial in raced})
    chosen = report.config
    finding = (
        f"{capitalized(count_text(tried, 'pair'))} of a batch and a rate were tried. Chosen is a batch of "
        f"{chosen.plan.effective_batch_size:,} at {lr_text(chosen.lr)}. The stronger a point, the better it scored "
        "among those that were trained as long."
    )
    return Chart(
        title="Batch sizes and learning rates tried",
        finding=finding,
        unit="lr",
        series=tuple(one for one in series if one.points),
        is_log=True,
        table=_trial_table(report),
    )


def _can_be_placed(trial: Json) -> bool:
    return LEAST_LR <= trial["lr"] <= MOST_LR and 1 <= _samples(trial) <= MOST_SAMPLES


def _samples(trial: Json) -> int:
    samples: int = trial["batch_size"] * trial["accumulation_steps"] * trial.get("ranks", 1)
    return samples


def _few(rungs: Sequence[int]) -> list[int]:
    return list(rungs[: len(_LANDSCAPE)])


def _few_of(rung: int, rungs: Sequence[int]) -> int:
    """The rung that it is drawn with: the lowest of those that are told apart, where it is below them."""
    return max(rung, _few(rungs)[-1])


def _rung_text(sixteenths: int) -> str:
    return "T" if sixteenths == 16 else f"T/{16 / sixteenths:.3g}" if sixteenths else "less than T/16"


def _spots(name: str, slot: int, points: Iterable[Point], mark: str | None = None) -> Series:
    placed = tuple(sorted(points, key=lambda point: point.x))
    marks = () if mark is None else tuple((mark, point.x) for point in placed)
    return Series(name=name, slot=slot, points=placed, marks=marks, is_line=False)


def throughput_chart(report: Report, found: Json) -> Chart:
    """Samples per second over batch sizes, with those that matter."""
    timed = [point for point in by_size(found) if _is_drawable(point["samples_per_s"]) and point["batch_size"] >= 1]
    points = tuple(_fitted_speed(point) for point in timed)
    is_known = found.get("saturates", True)  # older reports do not say
    marks = [("knee", found["knee_batch_size"])] if is_known else []
    series = _one_series("samples/s", points, [*marks, *_choices(report)])
    at = {point.x: point.value for point in points}
    chosen = report.config.plan.batch_size
    finding = f"{capitalized(found['knee'])}."
    if chosen in at:
        finding += f" Chosen is a batch of {chosen}, with {speed_text(at[chosen])} samples/s."
    return _over_batches("Throughput", finding, "samples/s", series, f"{report.task}: samples per second")


def _fitted_speed(point: Json) -> Point:
    """Samples per second by the fitted curve, as in the table beside it: the choices rest on it.

    A report from before it was told has the median of that size's own steps, with its interval.
    """
    fitted: float | None = point.get("undisturbed_samples_per_s")
    if fitted is None or not _is_drawable(fitted):
        return speed_point(point)
    return Point(x=point["batch_size"], value=fitted)


def memory_chart(report: Report) -> Chart:
    """Peak memory over batch sizes, what did not fit, and the limit."""
    found = report.max_batch
    ended = {probe["batch_size"]: probe for probe in found["probes"] if probe["batch_size"] >= 1}  # the last run counts
    peaks = {
        size: p["peak_bytes"] for size, p in ended.items() if p["outcome"] == "ok" and _is_drawable(p["peak_bytes"])
    }
    points = tuple(Point(x=size, value=float(peak)) for size, peak in sorted(peaks.items()))
    failed = tuple(sorted(size for size, probe in ended.items() if probe["outcome"] != "ok"))
    series = _one_series("peak memory", points, [("largest", found["batch_size"]), *_choices(report)], failed)
    limit = found["limit_bytes"] if _is_drawable(found["limit_bytes"]) else None
    finding = "Nothing counts the memory of this device."
    if points:
        most = points[-1]
        finding = f"A step of {most.x:.0f} peaks at {format_size(most.value)}"
        finding += "." if limit is None else f", of the {format_size(limit)} that may be used."
    return _over_batches(
        "Peak memory",
        finding,
        "bytes",
        series,
        f"{report.task}: peak memory of a training step",
        is_log=True,
        level=limit_level({limit}),
    )


def _is_drawable(value: float | None) -> bool:
    return value is not None and 1 / _LARGEST <= value <= _LARGEST


def _choices(report: Report) -> Iterator[tuple[str, int]]:
    chosen, baseline = report.config.plan.batch_size, report.baseline_plan.plan.batch_size
    yield "chosen", chosen
    if chosen != baseline:
        yield "yours" if report.baseline_is_users else "default", baseline


def _one_series(
    name: str, points: tuple[Point, ...], marks: Iterable[tuple[str, int]], failed: tuple[int, ...] = ()
) -> tuple[Series, ...]:
    if not points:
        return ()
    places = {point.x for point in points}
    kept = tuple((word, size) for word, size in marks if size in places)
    return (Series(name=name, slot=_BASELINE, points=points, marks=kept, failed=failed),)


def _over_batches(
    title: str,
    finding: str,
    unit: Unit,
    series: tuple[Series, ...],
    caption: str,
    *,
    is_log: bool = False,
    level: tuple[str, float] | None = None,
) -> Chart:
    write = speed_text if unit == "samples/s" else format_size
    table = series_table(caption, series, lambda point: write(point.value))
    return Chart(title=title, finding=finding, unit=unit, series=series, is_log=is_log, level=level, table=table)


def range_test_chart(report: Report) -> Chart | None:
    """The smoothed loss over the rates of the range test; None without one."""
    found = report.learning_rate
    if found is None:
        return None
    steps = [
        (lr, loss)
        for lr, loss in zip(found["lrs"], found["smoothed"], strict=False)
        if LEAST_LR <= lr <= MOST_LR and abs(loss) <= _LARGEST
    ]
    points = tuple(Point(x=lr, value=loss) for lr, loss in sorted(steps))
    if not points:
        return None
    start, lowest = steps[0][1], min(loss for _, loss in steps)
    # One that has blown up would flatten all others.
    within = (lowest, max(start, lowest) + abs(start - lowest) or lowest + 1.0)
    suggestion = found["suggestion"]
    series = [Series(name="smoothed loss", slot=_BASELINE, points=points, is_line=True)]
    if suggestion is not None and _is_drawable(suggestion):
        nearest = min(points, key=lambda point: abs(point.x - suggestion))
        series.append(_spots("suggested", _CHOSEN, [Point(x=nearest.x, value=nearest.value)]))
    across: Across = "learning rate"
    rows = tuple((lr_text(point.x, 2), f"{point.value:.5g}") for point in points)
    columns = (Column(title="learning rate", is_number=True), Column(title="smoothed loss", is_number=True))
    return Chart(
        title="Range test",
        finding="Each step was taken at a rate of its own. A loss that has blown up lies at the upper edge.",
        unit="loss",
        series=tuple(series),
        across=across,
        within=within,
        table=Table(columns=columns, rows=rows, caption="The smoothed loss at each rate"),
    )


def confirmation_figure(report: Report) -> Intervals | None:
    """The means on fresh seeds with their 95 % intervals; None where nothing has a score."""
    own = "yours" if report.baseline_is_users else "the default"
    sides: list[tuple[str, int, ScoreSummary | None]] = [(own, _BASELINE, report.baseline)]
    if not report.chose_baseline:
        sides.insert(0, ("this", _CHOSEN, report.score))
    estimates = tuple(
        _estimate(name, slot, score)
        for name, slot, score in sides
        if score is not None and abs(score.mean) + _WIDE * (score.stderr or 0.0) <= _LARGEST
    )
    if not estimates:
        return None
    decimals = decimals_of(report)
    better = "to the right" if report.direction == "maximize" else "to the left"
    finding = f"Better is {better}. A bar is the 95 % interval of the mean, 1.96 standard errors to either side"
    finding += "; a stroke below it is one seed." if any(e.singles for e in estimates) else "."
    if any(e.low is None for e in estimates):
        finding += " Where nothing was repeated, there is no interval."
    shown = {estimate.name for estimate in estimates}
    if missing := [name for name, _, _ in sides if name not in shown]:
        finding += f" {capitalized(missing[0])} has no score on fresh seeds."
    columns = (
        Column(title=""),
        Column(title="mean", is_number=True),
        Column(title="95 % interval", is_number=True),
        Column(title="seeds"),
    )
    rows = tuple(
        (
            e.name,
            score_text(e.mean, decimals),
            "-" if e.low is None else f"{score_text(e.low, decimals)} to {score_text(e.high, decimals)}",
            ", ".join(score_text(single, decimals) for single in e.singles),
        )
        for e in estimates
    )
    table = Table(columns=columns, rows=rows, caption=f"Scores on fresh seeds, against {baseline_name(report)}")
    return Intervals(title="On fresh seeds", finding=finding, estimates=estimates, table=table)


def _estimate(name: str, slot: int, score: ScoreSummary) -> Estimate:
    half = None if score.stderr is None else _WIDE * score.stderr
    low, high = (None, None) if half is None else (score.mean - half, score.mean + half)
    singles = tuple(single for single in score.scores if abs(single) <= _LARGEST)
    return Estimate(name=name, slot=slot, mean=score.mean, low=low, high=high, singles=singles)


def ledger_figure(report: Report) -> Shares:
    """The budget as a bar: what the time went to."""
    ledger = report.ledger
    entries = sorted(((kind, s) for kind, s in ledger["entries"].items() if s > 0), key=lambda entry: -entry[1])
    spent_s = sum(seconds for _, seconds in entries)
    budget_s = max(ledger["budget_s"], spent_s)
    finding = f"{format_duration(spent_s)} of a budget of {format_duration(ledger['budget_s'])}"
    finding += f"; {entries[0][0]} took the most, {share_text(entries[0][1] / spent_s)}." if entries else "."
    rows = tuple((kind, format_duration(seconds), share_text(seconds / spent_s)) for kind, seconds in entries)
    columns = (Column(title="on"), Column(title="time", is_number=True), Column(title="share", is_number=True))
    most_s = entries[0][1] if entries else 1.0
    table = Table(
        columns=columns,
        rows=rows,
        bars=tuple(seconds / most_s for _, seconds in entries),
        caption="What the time went to, the largest first",
    )
    parts = entries
    if len(parts) > COLORS:  # the least of them are too thin to be told apart in any case
        parts = [*parts[: COLORS - 1], ("the rest", sum(seconds for _, seconds in parts[COLORS - 1 :]))]
    return Shares(title="The budget", finding=finding, parts=tuple(parts), whole=budget_s, table=table)
