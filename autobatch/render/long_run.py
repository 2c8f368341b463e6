"""What is extrapolated to a training longer than those that were compared. It is always called extrapolated."""

from __future__ import annotations

import math

from ..core.json_reader import Json
from ..core.units import format_duration
from .document import Column, Paragraph, Part, Section, Table
from .numbers import count_text, lr_text, score_text, share_text

# Forecasts were checked on trainings up to this many times as long (benchmarks/NOTES.md).
_TRIED = 4


def long_run_section(found: Json, baseline: str, decimals: int) -> Section:
    """The stability of the ranking, the lead, and the learning rate for the long training.

    Args:
        found: `LongRun.to_json`.
        baseline: the name of the baseline.
        decimals: of a score.
    """
    times = found["train_time_s"] / found["horizon_s"]
    tried = (
        f"such forecasts were tried for up to {_TRIED} times T."
        if times <= _TRIED
        else f"such forecasts were tried for up to {_TRIED} times T only."
    )
    horizon = format_duration(found["horizon_s"])
    text = (
        f"Extrapolated, not measured: no configuration was trained for longer than {horizon}. "
        f"Your training is {_times_text(times)} times as long; {tried} What begins to overfit after T, none of them "
        "foresees."
    )
    parts: list[Part] = [Paragraph(text=text), Paragraph(text=_lr(found))]
    if found["forecasts"]:
        parts += _leads(found, baseline, decimals)
    parts.append(Paragraph(text=_stability(found["stability"], has_forecasts=bool(found["forecasts"]))))
    return Section(title="Beyond T (extrapolated)", parts=tuple(parts))


def _lr(found: Json) -> str:
    """The rate for the long training, and its basis."""
    trend = found["lr"]
    interval = f"{share_text(found['confidence'])} interval {lr_text(trend['low'])} to {lr_text(trend['high'])}"
    train_time = format_duration(found["train_time_s"])
    text = f"Learning rate for {train_time}, at the same batch: {lr_text(trend['lr'])}, {interval}."
    if trend["measured"] is None:
        return (
            f"{text} Too few trials reached two rungs to see how the best rate moves with time, so it is left as it is."
        )
    seen = ", ".join(f"{lr_text(lr, 2)} at {_rung(share)}" for share, lr in trend["rungs"])
    if trend["slope"] == 0:
        return f"{text} Over the rungs the best rate did not fall ({seen}), so it is left as it is."
    fall = math.exp(trend["slope"])
    return f"{text} Over the rungs the best rate fell ({seen}); for each doubling of the time {fall:.2f} of it is kept."


def _leads(found: Json, baseline: str, decimals: int) -> list[Part]:
    """The lead over the baseline and over the runner-up, now and later."""
    columns = (
        Column(title="lead over"),
        Column(title="at T", is_number=True),
        Column(title=f"at {format_duration(found['train_time_s'])}", is_number=True),
        Column(title=f"{share_text(found['confidence'])} interval", is_number=True),
        Column(title="ahead", is_number=True),
    )
    rows = tuple(
        (
            f"{baseline if one['against'] == 'baseline' else 'the ' + one['against']}, batch {one['batch_size']}, "
            f"lr {lr_text(one['lr'])}",
            score_text(one["lead"], decimals),
            score_text(one["expected"], decimals),
            f"{score_text(one['low'], decimals)} to {score_text(one['high'], decimals)}",
            share_text(one["ahead"]),
        )
        for one in found["forecasts"]
    )
    text = 'A lead is positive if the recommended configuration is better; "ahead" is the chance that it still is.'
    if any(one.get("is_picked", False) for one in found["forecasts"]):  # missing in older reports
        text += (
            " The runner-up was picked by its only score, which is rather too high by luck, so the lead "
            "over it is too small."
        )
    return [Paragraph(text=text), Table(columns=columns, rows=rows)]


def _stability(found: list[Json], *, has_forecasts: bool) -> str:
    """How much of the order at one rung was kept at a later one."""
    if not found:
        return "No two trials reached two rungs: the stability of the ranking is unknown."
    seen = "; ".join(
        f"{_rung(one['early'])} to {_rung(one['late'])} {share_text(one['kept'])} of {count_text(one['pairs'], 'pair')}"
        for one in found
    )
    text = f"Pairs of trials in the same order at two rungs (half would be chance): {seen}."
    last = max(found, key=lambda one: (one["late"], one["early"]))
    if last["kept"] <= 0.5 and not has_forecasts:
        text += (
            f" From {_rung(last['early'])} to {_rung(last['late'])} no more than half kept it, so there is no forecast "
            "of the lead."
        )
    return text


def _times_text(times: float) -> str:
    return f"{times:,.0f}" if times >= 10 else f"{times:.2g}"


def _rung(share: float) -> str:
    return "T" if share == 1 else f"T/{1 / share:.3g}"
