"""The content of a report, in the order of a reader's questions: what to use, what it beats, where it holds, why."""

from __future__ import annotations

import math

from ..core.json_reader import Json
from ..core.plan import Config
from ..core.units import format_duration, format_probability
from ..core.words import outcome_text
from ..reports.report import Report
from ..reports.trial_table import is_config_of
from .document import Bullets, Code, Column, Document, Paragraph, Part, Section, Table, visible
from .evidence import lr_sentence, max_batch_summary, provenance, throughput_summary
from .long_run import long_run_section
from .numbers import capitalized, count_text, known, lr_text, score_decimals, score_text, share_text

# The number of trials shown. Assumed: the best few and the two that matter; the JSON has all of them.
_TRIALS_SHOWN = 8


def report_document(report: Report) -> Document:
    """The whole report, every choice of what to show and to how many digits made."""
    decimals = decimals_of(report)
    sections = [use_section(report)]
    if report.not_compared is not None or report.horizon_s is None:
        sections.append(not_compared_section(report))
    else:
        sections += [comparison_section(report), horizon_section(report.horizon_s, report.train_time_s)]
    if report.long_run is not None:
        sections.append(long_run_section(report.long_run, baseline_name(report), decimals))
    sections += [
        Section(title="Why", parts=(Bullets(items=report.why),)),
        Section(title="Largest batch", parts=max_batch_summary(report.max_batch)),
    ]
    if report.throughput is not None:
        parts = throughput_summary(report.throughput, batch_marks(report))
        sections.append(Section(title="Throughput", parts=parts))
    if report.learning_rate is not None:
        sections.append(Section(title="Range test", parts=(Paragraph(text=lr_sentence(report.learning_rate)),)))
    if report.trials or report.not_compared is None:
        sections.append(trials_section(report, decimals))
    sections.append(ledger_section(report.ledger))
    if report.warnings:
        sections.append(Section(title="Warnings", parts=(Bullets(items=report.warnings),)))
    sections.append(origin_section(report))
    return Document(title=report.task, sections=tuple(sections))


def comparison_section(report: Report) -> Section:
    """The recommendation against what the user has."""
    return Section(title=f"Against {baseline_name(report)}", parts=tuple(_comparison(report, decimals_of(report))))


def not_compared_section(report: Report) -> Section:
    """Why there was no time for a comparison, and which budget would be enough."""
    why = report.not_compared or "there was no time for it"
    return Section(title="Not compared", parts=(Paragraph(text=f"{capitalized(why)}."),))


def horizon_section(horizon_s: float, train_time_s: float | None) -> Section:
    """At which length of training the answer holds."""
    return Section(title="Where it holds", parts=(Paragraph(text=_horizon(horizon_s, train_time_s)),))


def origin_section(report: Report) -> Section:
    """What the run was made with."""
    return provenance(
        report.device, version=report.version, created=report.created, command=report.command, seed=report.seed
    )


def difference(report: Report) -> tuple[float, float | None] | None:
    """The chosen configuration's mean score minus the baseline's, and its standard error; None without both scores.

    Both means have the same pooled sigma, so the variance of the difference is the sum of the two.
    """
    if report.chose_baseline or report.score is None or report.baseline is None:
        return None
    of_score, of_baseline = report.score.stderr, report.baseline.stderr
    stderr = None if of_score is None or of_baseline is None else math.hypot(of_score, of_baseline)
    return report.score.mean - report.baseline.mean, stderr


def use_section(report: Report) -> Section:
    """The configuration, as it is typed into one's own training."""
    plan = report.config.plan
    lines: tuple[str, ...] = (
        f"batch_size = {plan.batch_size}",
        f"accumulation_steps = {plan.accumulation_steps}",
        f"lr = {lr_text(report.config.lr, 6)}",
    )
    if report.typed is not None:
        lines = (visible(report.typed), "", *lines)
    else:
        lines = (*lines, f'precision = "{plan.precision}"')
    return Section(title="Use", parts=(Code(lines=lines), Paragraph(text=headline(report))))


def headline(report: Report) -> str:
    """The answer in one sentence, and what is not confirmed of it."""
    name, again = baseline_name(report), _again(report)
    if not report.chose_baseline:
        if report.baseline is None:
            text = f"This trained to the end, where {name} did not."
        elif report.score is None:
            text = f"This did better than {name} once."
        elif report.is_proven:
            text = f"This beat {name} {again}."
        elif report.probability is not None:
            chance = format_probability(report.probability)
            text = (
                f"This is as good as {name}. It was ahead {again}, which is not proven: it is better with a "
                f"probability of {chance}."
            )
        else:  # a report from before it was told how sure that is
            text = f"This was ahead of {name} {again}."
        if report.score is None:
            text += f" It is not confirmed {again}."
    elif report.not_compared is not None:
        text = f"This is {name}. The budget was too short to compare anything with it."
    elif report.score is None:
        text = f"This is {name}. It was not trained to the end: its score is unknown."
    elif report.is_unanswered:
        text = (
            f"This is {name}. Nothing could be compared with it: the other trials failed (see the warnings). "
            "Fix that, and run again."
        )
    else:
        keep = "keep what you have" if report.baseline_is_users else "there is no reason to leave it"
        text = f"This is {name}. Nothing beat it: {keep}."
    plan = report.config.plan
    if plan.ranks > 1:
        text += f" The batch size is per process, of {plan.ranks} processes."
    if plan.effective_batch_size > plan.batch_size:
        text += f" An optimizer step averages over {plan.effective_batch_size:,} samples."
    if report.interrupted:
        text += " The run was stopped before its end: a longer one may find something better."
    return text


def _comparison(report: Report, decimals: int) -> list[Part]:
    """The means on fresh seeds and their difference."""
    better = "Higher is better." if report.direction == "maximize" else "Lower is better."
    name = baseline_name(report)
    found = difference(report)
    if found is not None:
        mean, stderr = found
        more = "higher" if mean > 0 else "lower"
        error = known(stderr, lambda e: score_text(e, decimals), "unknown, as nothing was repeated")
        sentence = f"The mean score is {more} by {score_text(abs(mean), decimals)}, standard error {error}. {better}"
    elif report.chose_baseline:
        sentence = better
    else:
        missing = "neither has a score" if report.score is report.baseline else "only one of them has a score"
        sentence = f"There is no difference to state: {missing}. {better}"
    rows = [("yours" if report.baseline_is_users else name, report.baseline, report.test_baseline)]
    if not report.chose_baseline:
        rows.insert(0, ("this", report.score, report.test_score))
    columns = [
        Column(title=""),
        Column(title="mean score", is_number=True),
        Column(title="std. error", is_number=True),
        Column(title="seeds", is_number=True, optional=True),
    ]
    cells = [
        [
            who,
            score_text(score.mean if score else None, decimals),
            score_text(score.stderr if score else None, decimals),
            str(len(score.scores)) if score else "-",
        ]
        for who, score, _ in rows
    ]
    if report.search_score is not None:
        cells[0][1] = f"{score_text(report.search_score, decimals)} (search)"
    if any(test is not None for _, _, test in rows):
        columns.append(Column(title="test score", is_number=True))
        for row, (_, _, test) in zip(cells, rows, strict=True):
            row.append(score_text(test, decimals))
    parts: list[Part] = [
        Paragraph(text=sentence),
        Table(columns=tuple(columns), rows=tuple(tuple(row) for row in cells)),
    ]
    if report.search_score is not None:
        parts.append(
            Paragraph(
                text='The score marked "search" is the one by which this was selected, so it is rather too high: there '
                "was no time for a fresh seed."
            )
        )
    if not report.chose_baseline:
        parts.append(Paragraph(text=f"{capitalized(name)} is {_config_text(report, report.baseline_plan)}."))
    if report.interrupted:
        parts += [Paragraph(text=sentence) for sentence in _unconfirmed(report, decimals)]
    return parts


def _unconfirmed(report: Report, decimals: int) -> list[str]:
    """For an interrupted run: the best trial that was trained to the end but not tried under fresh seeds."""
    bar = report.baseline.mean if report.baseline is not None else None
    found = [
        trial
        for trial in report.trials
        if trial["role"] in ("warm start", "search") and trial["state"] == "complete" and not _is_chosen(trial, report)
    ]
    best = max(found, key=lambda trial: report.oriented(last_score(trial)), default=None)
    if best is None or (bar is not None and report.oriented(last_score(best)) <= report.oriented(bar)):
        return []
    score = score_text(last_score(best), decimals)
    return [f"Not confirmed: {batch_text(best)} at {lr_text(best['lr'])} scored {score}, once."]


def _horizon(horizon_s: float, train_time_s: float | None) -> str:
    horizon = format_duration(horizon_s)
    text = f"Configurations were compared at T = {horizon} of training each, and the answer holds there."
    if train_time_s is None:
        return f"{text} If your training takes longer, say how long (--train-time): the best configuration may differ."
    # Within a hundredth it is the same horizon: T is a whole number of optimizer steps.
    if horizon_s >= 0.99 * train_time_s:
        return f"{text} That is as long as your training."
    return (
        f"{text} Your training takes {format_duration(train_time_s)}, longer than T: the best configuration "
        "for it may differ, and a larger budget compares closer to it."
    )


def batch_marks(report: Report) -> dict[int, str]:
    """Words for the batch sizes that matter most."""
    chosen, baseline = report.config.plan.batch_size, report.baseline_plan.plan.batch_size
    own = "yours" if report.baseline_is_users else "default"
    if chosen == baseline:
        return {chosen: f"chosen, {own}"}
    return {chosen: "chosen", baseline: own}


def trials_section(report: Report, decimals: int) -> Section:
    """The best few trials: the furthest trained first, for scores at different rungs do not compare."""
    raced = [trial for trial in report.trials if trial["role"] != "confirmation"]
    ranked = sorted(
        raced,
        key=lambda trial: (
            not trial["scores"],
            -round(16 * share_done(trial)),
            -report.oriented(last_score(trial)) if trial["scores"] else 0.0,
        ),
    )
    pinned = [trial for trial in ranked if trial["role"] == "baseline" or _is_chosen(trial, report)][:_TRIALS_SHOWN]
    others = [trial for trial in ranked if trial not in pinned][: _TRIALS_SHOWN - len(pinned)]
    shown = [trial for trial in ranked if trial in pinned or trial in others]
    columns = (
        Column(title="batch x acc." + (" x ranks" if report.config.plan.ranks > 1 else "")),
        Column(title="lr", is_number=True),
        Column(title="score", is_number=True),
        Column(title="trained", is_number=True),
        Column(title="state", optional=True),
        Column(title="role", optional=True),
    )
    rows = tuple(
        (
            batch_text(trial),
            lr_text(trial["lr"]),
            score_text(last_score(trial) if trial["scores"] else None, decimals),
            share_text(share_done(trial)),
            state_text(trial),
            trial["role"] + (", chosen" if _is_chosen(trial, report) else ""),
        )
        for trial in shown
    )
    confirmations = len(report.trials) - len(raced)
    again = "on fresh seeds" if report.has_seeds else "of one of them again"
    fresh = f", and {count_text(confirmations, 'run')} {again}" if confirmations else ""
    text = f"{count_text(len(raced), 'trial')}{fresh}."
    if len(shown) < len(raced):
        text += f" Shown are {len(shown)}, the furthest trained and best first."
    return Section(title="Trials", parts=(Paragraph(text=text), Table(columns=columns, rows=rows)))


def ledger_section(ledger: Json) -> Section:
    """Where the time went, the largest entry first."""
    entries = sorted(((kind, s) for kind, s in ledger["entries"].items() if s > 0), key=lambda entry: -entry[1])
    elapsed_s = sum(seconds for _, seconds in entries)
    most_s = max((seconds for _, seconds in entries), default=1.0)
    rows = tuple((kind, format_duration(seconds), share_text(seconds / elapsed_s)) for kind, seconds in entries)
    columns = (Column(title="on"), Column(title="time", is_number=True), Column(title="share", is_number=True))
    text = f"{format_duration(elapsed_s)} of a budget of {format_duration(ledger['budget_s'])}."
    table = Table(columns=columns, rows=rows, bars=tuple(seconds / most_s for _, seconds in entries))
    return Section(title="Where the time went", parts=(Paragraph(text=text), table))


def decimals_of(report: Report) -> int:
    """Decimals of every score of the report: all alike, so that they can be compared by eye."""
    sides = [score for score in (report.score, report.baseline) if score is not None]
    finals = [last_score(trial) for trial in report.trials if trial["state"] == "complete"]
    return score_decimals([side.mean for side in sides] or finals, [side.stderr for side in sides])


def baseline_name(report: Report) -> str:
    """What the baseline is called in a sentence."""
    return "your configuration" if report.baseline_is_users else "the default"


def _again(report: Report) -> str:
    """How what was chosen was tried again."""
    return "on fresh seeds" if report.has_seeds else "when it was run again"


def _config_text(report: Report, config: Config) -> str:
    plan = config.plan
    steps = f"batch_size {plan.batch_size}, accumulation_steps {plan.accumulation_steps}"
    precision = "" if report.typed is not None else f", {plan.precision}"  # a command has its own, unknown to us
    return f"{steps}, lr {lr_text(config.lr, 6)}{precision}"


def batch_text(trial: Json) -> str:
    """The batch of a trial, with what it is multiplied by."""
    ranks = trial.get("ranks", 1)
    return f"{trial['batch_size']} x {trial['accumulation_steps']}" + (f" x {ranks}" if ranks > 1 else "")


def last_score(trial: Json) -> float:
    """The score at the furthest rung of a trial that has one."""
    score: float = trial["scores"][-1][1]
    return score


def share_done(trial: Json) -> float:
    """How much of its schedule the trial's last score stands for."""
    share: float = trial["scores"][-1][0] / trial["total_steps"] if trial["scores"] else 0.0
    return share


def state_text(trial: Json) -> str:
    """Where a trial stands, and why if it failed."""
    if trial["state"] != "failed":
        return str(trial["state"])
    outcome = str(trial["outcome"])
    return outcome_text(outcome)


def _is_chosen(trial: Json, report: Report) -> bool:
    return is_config_of(trial, report.config)
