"""`tune`, end to end: the stages in order, under one ledger, into one report.

Each stage hands frozen data to the next: task and device -> largest batch -> throughput -> range test -> race ->
confirmation -> report. Nothing here decides a number; it says which stage gets what.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..core.checkpoints import checkpoint_path, is_whole
from ..core.facts import DeviceInfo, TaskFacts
from ..core.measurement import Measurement
from ..core.progress import Kind, Listener, Progress, Stage, Standing
from ..core.runner import Runner
from ..core.units import format_duration, format_lr
from ..core.words import outcome_text
from ..engines.pool import Pool
from ..errors import BudgetTooShort, NoValidResult, WorkerTimeout, after_warnings
from ..measuring.allowance import Allowance
from ..measuring.learning_rate import LrCurve
from ..measuring.memory import MaxBatch
from ..measuring.throughput import ThroughputCurve, assumed_curve
from ..reports.report import Report
from ..runs.conditions import Condition, changes, check_conditions, conditions_of_task
from ..runs.run_folder import RunFolder, RunState
from ..searching.budget.advice import SWEEP_SHARE, give_at_least
from ..searching.budget.costs import ladder_for, least_budget_s, worth_step_s
from ..searching.budget.ledger import Ledger
from ..searching.crew import Alone
from ..searching.trials import DEFAULT_LADDER, ERRORS, Ladder, optimizer_step_s
from ..searching.verdict.failures import headline
from .result import baseline_that_fits, compared_report, measured_report, train_time_of
from .shares import memory_s, profile_s
from .stages import (
    FEWEST_SWEEP_STEPS,
    largest_batch,
    largest_micro_batch,
    lr_curve_of,
    sweep_steps,
    throughput_of,
    useful_ceiling,
)

if TYPE_CHECKING:
    from ..searching.search import Event, Kept, SearchResult
    from ..searching.storage.central import CentralRecord

# Time for the last rows to reach the database: at most the first within the budget, but at least the second. Assumed:
# they take tenths of a second.
_CENTRAL_S, _CENTRAL_LEAST_S = 5.0, 0.5
OPENING = "opening and checking the task (model(), train_data(), val_data(), a step and an evaluation)"
# The end of a run (draw and save the report, save the state, end the workers) takes this many times as long as its
# rehearsal (draw a table, save the state). Measured with ten processes on a core: 0.65 s for workers and saving and
# 0.67 s for drawing, after a rehearsal of 0.3 s.
_END_REHEARSALS = 4
# After so much of the budget it is rehearsed again, and after each fresh seed: a machine gets busy in the middle of a
# run. In the search, so that this ends it earlier and the first fresh seed still fits. Assumed: an idle machine takes
# some 0.02 s, ten of which are 0.3 % of a minute.
_REHEARSAL_SHARE = 0.1
_EVAL_BATCH = 1024  # assumed: beyond it a forward pass without gradients gains nothing on the devices we know


def too_short_for(doing: str) -> str:
    """The remedy where nothing is known of how long `doing` takes."""
    return (
        f"It is not known how long {doing} takes, only that this budget was too short for it: check first whether "
        "it ends at all, and then give several times as long as it takes by itself"
    )


class _Tune:
    """One run: what its stages share, and their results so far."""

    def __init__(
        self,
        runner: Runner,
        ledger: Ledger,
        listen: Listener,
        folder: RunFolder,
        state: RunState,
        *,
        kept: Kept | None = None,
        force: bool = False,
        storage: str | None = None,
    ) -> None:
        self.runner, self.ledger, self.listen, self.folder = runner, ledger, listen, folder
        self.state, self.settings, self.kept, self.force = state, state.settings, kept, force
        self.storage = storage
        self.doing = OPENING
        self.timed: dict[int, float] = {}  # seconds of a step that a probe took, by its batch size
        self.central: CentralRecord | None = None
        self.rehearsed_s = 0.0  # when the end was last rehearsed, by the ledger

    def run(self) -> Report:
        with self.ledger.charge("start-up"):
            facts = self.runner.facts()
            device = self.runner.device()
            with after_warnings(facts.warnings):
                self.open_central(facts, device)
        with after_warnings(facts.warnings):
            return self.stages(facts, device)

    def stages(self, facts: TaskFacts, device: DeviceInfo) -> Report:
        """Run the stages that follow the check of the task."""
        self.say("start", "note", f"{facts.name} on {device.name}")
        self.go_on_under(conditions_of_task(facts, device, self.settings.workers or 1))
        if self.state.resumed:
            self.say("start", "note", f"resumed, with {format_duration(self.ledger.elapsed_s)} of the budget spent")
        if facts.val_size is None or facts.has_test_data:
            self.see_evaluation_end()
        if (largest := self.state.results.largest) is None:
            largest = self.largest_batch(facts)
            self.keep(largest=largest)
        try:
            result = self.compared(facts, largest)
        except BudgetTooShort as short:
            return self.report(facts, device, largest, not_compared=str(short))
        except WorkerTimeout as error:  # the end of the budget cut off a stage, or a worker hangs
            if error.is_hang:
                raise
            why = f"the budget ended before anything could be compared: {error}. {self.what_would_do()}"
            return self.report(facts, device, largest, not_compared=why)
        return compared_report(self.report(facts, device, largest), result, facts)

    def compared(self, facts: TaskFacts, largest: MaxBatch) -> SearchResult:
        """Run the stages from the profile on, up to the result of the race.

        Raises:
            BudgetTooShort: there is no time for a race.
            WorkerTimeout: the budget ended in the middle of a stage.
        """
        found = self.state.results
        if (micro_batch := found.micro_batch) is None:
            micro_batch = self.largest_micro_batch(largest)
            self.keep(micro_batch=micro_batch)
        if (curve := found.curve) is None:
            curve = self.throughput(facts, largest)
            self.keep(curve=curve)
        curve = replace(curve, rule=largest.rule)
        if (sweep := found.sweep) is None and not found.is_swept:
            sweep = self.range_test(facts, curve, int(largest), micro_batch)
            self.keep(sweep=sweep, is_swept=True)
        return self.race(facts, curve, sweep, largest, micro_batch)

    def see_evaluation_end(self) -> None:
        """Fail now if the validation data never ends, and not after all other stages."""
        # Imported here, as in `race`.
        from ..searching.budget.costs import longest_evaluation_s

        with self.ledger.charge("evaluation"):
            self.runner.see_evaluation_end(longest_evaluation_s(self.ledger.available_s))

    def open_central(self, facts: TaskFacts, device: DeviceInfo) -> None:
        """Open the database, if there is one. If it cannot be opened, that fails now and not after an hour."""
        if self.storage is None:
            if (earlier := self.settings.storage) is not None:
                remark = (
                    f"the central record {earlier} was not continued: a run's folder does not decide where data is "
                    "written, and has no password. Give --storage again"
                )
                self.say("start", "note", remark)
                self.save(remarks=tuple(dict.fromkeys((*self.state.remarks, remark))))
            return
        # Imported here: a run without a database imports optuna while its worker is busy.
        from ..searching.storage.central import CentralRecord

        self.central = CentralRecord(
            self.storage,
            self.settings.study or f"{facts.name} {self.state.created}",
            facts.direction,
            {"autobatch": __version__, "device": device.name},
            must_open=not self.state.resumed,
        )
        self.say("start", "note", f"also recorded in {self.central.shown}")

    def close_central(self) -> str | None:
        """Bring the database up to date in the time left. If it still lacks something, a sentence says what."""
        if self.central is None:
            return None
        central, self.central = self.central, None
        return central.close(min(_CENTRAL_S, max(_CENTRAL_LEAST_S, self.ledger.available_s)))

    def go_on_under(self, now: Mapping[str, Condition]) -> None:
        """Save the conditions that the worker reports. Trials under different conditions must not mix in one run.

        Raises:
            RunError: the conditions have changed.
        """
        check_conditions(self.folder.path, self.state.conditions, now, force=self.force)
        remarks = self.state.remarks
        if lines := changes(self.state.conditions, now):
            remarks += (f"the run was resumed under other conditions: {'; '.join(lines)}",)
        self.save(conditions={**self.state.conditions, **now}, remarks=remarks)

    def keep(self, **found: Any) -> None:
        """Save results of a stage."""
        self.save(results=replace(self.state.results, **found))

    def save(self, **changed: Any) -> None:
        """Update the state and write it to disk."""
        self.state = replace(self.state, **changed, charged=self.ledger.entries())
        with self.ledger.charge("record"):
            self.folder.save(self.state)

    def finish(self) -> None:
        """Mark the run as finished, and delete what only a resume would need."""
        self.save(is_finished=True)
        with suppress(OSError):  # it is not empty if checkpoints are to be kept
            self.folder.checkpoints.rmdir()

    def least_s(self) -> float | None:
        """The shortest budget that pays for a race, from the largest step that was timed; None if none was."""
        if not self.timed:
            return None
        facts, size = self.runner.facts(), max(self.timed)
        own = facts.baseline.plan
        # A step grows at most in proportion to its batch.
        step_s = self.timed[size] * max(1.0, own.batch_size / size) * own.accumulation_steps
        return least_budget_s(step_s, eval_s=self.state.results.eval_s or 0.0, spent_s=self.ledger.elapsed_s)

    def what_would_do(self) -> str:
        """The remedy where the budget ended in the middle of a stage: a longer one, if it is known how long."""
        if (needed_s := self.least_s()) is not None and needed_s > self.settings.budget_s:
            return give_at_least(needed_s)
        return too_short_for(self.doing)

    def say(
        self,
        stage: Stage,
        kind: Kind,
        text: str,
        key: str | None = None,
        predicted_s: float | None = None,
        standing: Standing | None = None,
    ) -> None:
        self.listen(Progress(stage=stage, kind=kind, text=text, key=key, predicted_s=predicted_s, standing=standing))

    def largest_batch(self, facts: TaskFacts) -> MaxBatch:
        """The largest micro-batch that fits, up to the size that the race could use.

        The race never uses a size that leaves it too few steps, or one far above the knee. The search goes at least to
        the baseline's own batch.
        """
        self.doing = "a probe of the largest micro-batch"
        left_s = self.ledger.available_s
        ends_s = self.ledger.elapsed_s + memory_s(left_s)
        allowance = Allowance(
            left_s=lambda: ends_s - self.ledger.elapsed_s,
            worth_s=worth_step_s(left_s, self.settings.train_time_s),
            time_s=left_s,
        )
        with self.ledger.charge("memory"):
            return largest_batch(
                self.runner,
                facts.smallest_plan,
                useful_ceiling(facts),
                allowance=allowance,
                on_probe=self.note_step,
                on_progress=self.listen,
            )

    def note_step(self, probe: Measurement) -> None:
        """Remember how long a step of a probe took."""
        if probe.step_s:
            self.timed[probe.plan.batch_size] = probe.step_s[-1]

    def largest_micro_batch(self, largest: MaxBatch) -> int:
        with self.ledger.charge("memory"):
            return largest_micro_batch(self.runner, largest, on_progress=self.listen)

    def throughput(self, facts: TaskFacts, largest: MaxBatch) -> ThroughputCurve:
        if (why := facts.without.get("profile")) is not None:
            curve = assumed_curve(facts.baseline.plan, why)
            self.say("profile", "note", curve.describe_knee())
            return curve
        left_s = self.ledger.available_s
        budget_s = profile_s(left_s)
        self.doing = "timing a step"
        with self.ledger.charge("profile"):
            curve = throughput_of(self.runner, facts.smallest_plan, int(largest), budget_s=budget_s, rule=largest.rule)
        self.say("profile", "found", curve.describe_knee())
        return curve

    def range_test(self, facts: TaskFacts, curve: ThroughputCurve, largest: int, micro_batch: int) -> LrCurve | None:
        """Run a range test at the knee, with as many steps as its share of the budget pays for; None if too few."""
        if (without := facts.without.get("range test")) is not None:
            self.say("range test", "note", f"left out: {without}")
            return None
        plan = curve.plan_for(curve.ranks * curve.knee_batch_size, largest, facts.precision, micro_batch)
        steps = sweep_steps(curve, self.ledger.available_s)
        if plan is None or steps is None:
            why = f"{FEWEST_SWEEP_STEPS} steps would take more than {SWEEP_SHARE:.0%} of what is left"
            self.say("range test", "note", f"left out: {why}")
            return None
        self.doing = f"a range test of {steps} steps"
        try:
            with self.ledger.charge("range test"):
                return lr_curve_of(self.runner, plan, steps=steps, seed=self.settings.seed, on_progress=self.listen)
        except NoValidResult:  # it has been reported, and the search does not need it
            return None

    def race(
        self, facts: TaskFacts, curve: ThroughputCurve, sweep: LrCurve | None, largest: MaxBatch, micro_batch: int
    ) -> SearchResult:
        # Imported here because optuna takes half a second, and the worker has long been started.
        from ..searching.budget.costs import RUNGS
        from ..searching.search import SearchSettings, horizon_s, search
        from ..searching.storage.journal import StudyRecord

        eval_batch = min(int(largest), facts.val_size or int(largest), _EVAL_BATCH)
        if (eval_s := self.state.results.eval_s) is None:
            known = "" if facts.val_size is not None else ", which has no length and may not end,"
            self.doing = f"an evaluation on val_data(){known}"
            self.timed.clear()  # the time of a step does not tell the time of an evaluation
            with self.ledger.charge("evaluation"):
                eval_s = self.runner.time_evaluation(eval_batch)
            self.keep(eval_s=eval_s)
        # Before the horizon, which the reserve shortens. First without a clock, because it imports what drawing needs.
        with self.ledger.charge("record"):
            self.rehearse_the_end()
        self.keep_back_for_the_end()
        crew = self.runner.crew() if isinstance(self.runner, Pool) else Alone(self.runner)
        if (horizon := self.state.results.horizon_s) is None:
            baseline = baseline_that_fits(facts, curve, largest, micro_batch)
            train_time_s = train_time_of(self.settings, facts)
            ladder = ladder_for(
                self.ledger.available_s,
                train_time_s,
                eval_s=eval_s,
                rung_s=facts.rung_s,
                resumes=facts.resumes,
                at_once=crew.size,
            )
            horizon = horizon_s(
                self.ledger.available_s,
                train_time_s,
                eval_s=eval_s,
                baseline_step_s=optimizer_step_s(baseline.plan, curve),
                least_s=facts.least_s,
                rung_s=facts.rung_s,
                rungs=len(ladder.shares),
                repeats=ladder.repeats(resumes=facts.resumes),
                spent_s=self.ledger.elapsed_s,
                at_once=crew.size,
            )
            self.keep(horizon_s=horizon, rungs=ladder.shares)
        record = StudyRecord(self.folder.journal, facts.name, facts.direction, central=self.central)
        trials = self.ledger.available_s * crew.size / (horizon + RUNGS * eval_s)
        self.say(
            "search",
            "note",
            f"comparing at T = {format_duration(horizon)} of training each, with time for {trials:.0f} full trials",
        )
        settings = SearchSettings(
            seed=self.settings.seed,
            sampler=self.settings.search,
            earlier=tuple((one.config, one.origin) for one in self.settings.earlier),
            keep_checkpoints=self.settings.keep_checkpoints,
            most_trials=self.settings.max_trials,
            ladder=DEFAULT_LADDER if self.state.results.rungs is None else Ladder(shares=self.state.results.rungs),
        )
        return search(
            self.runner,
            self.ledger,
            curve,
            max_batch=int(largest),
            max_micro_batch=micro_batch,
            horizon_s=horizon,
            eval_s=eval_s,
            eval_batch_size=eval_batch,
            lr_hint=sweep.suggestion if sweep else None,
            lr_diverged=sweep.diverged_at if sweep else None,
            settings=settings,
            record=record,
            kept=None if self.kept is None else self.with_checkpoints(self.kept),
            on_event=self.on_event,
            crew=crew,
        )

    def keep_back_for_the_end(self) -> None:
        """Reserve time for what follows the race, measured by a rehearsal on this machine under its present load."""
        with self.ledger.charge("record"):
            begun_s = self.ledger.elapsed_s
            self.rehearse_the_end()
            self.rehearsed_s = self.ledger.elapsed_s
            self.ledger.keep_back(_END_REHEARSALS * (self.rehearsed_s - begun_s))

    def rehearse_the_end(self) -> None:
        from ..render.terminal import rehearse  # the end of the run needs its imports

        curve = self.state.results.curve
        assert curve is not None
        rehearse(curve.to_json())
        self.save()

    def with_checkpoints(self, kept: Kept) -> Kept:
        """The trials of a record. A trial whose checkpoint is missing or incomplete has failed, but the baseline starts
        again. A task that begins each segment from nothing has no checkpoints.
        """
        if not self.runner.facts().resumes:
            return kept
        trials = []
        for trial in kept.trials:
            path = checkpoint_path(self.folder.checkpoints, trial.number, trial.steps_done)
            if trial.state in ("running", "paused") and trial.scores and not is_whole(path):
                if trial.role == "baseline":
                    trial = replace(trial, state="running", scores=())
                else:
                    lost = f"its checkpoint is {'not whole' if path.exists() else 'gone'}: {path}"
                    trial = replace(trial, state="failed", outcome="crashed", message=lost)
            trials.append(trial)
        return replace(kept, trials=tuple(trials))

    def on_event(self, event: Event) -> None:
        if event.kind == "segment finished" and event.trial is not None:
            is_seed = event.trial.role == "confirmation"
            if is_seed or self.ledger.elapsed_s > self.rehearsed_s + _REHEARSAL_SHARE * self.ledger.budget_s:
                self.keep_back_for_the_end()
        standing = self.with_memory(event.standing)
        if event.trial is None:
            self.say("confirmation", "began", "the finalist under fresh seeds", standing=standing)
            return
        trial, plan = event.trial, event.trial.config.plan
        stage: Stage = "confirmation" if trial.role == "confirmation" else "search"
        key = f"trial {trial.number}"
        what = f"{key}: effective batch {plan.effective_batch_size}, lr {format_lr(trial.config.lr)}"
        if event.kind == "segment started":
            self.say(stage, "began", what, key, event.predicted_s, standing)
        elif trial.outcome == "ok":
            share = trial.steps_done / trial.total_steps
            self.say(stage, "found", f"{what}: {trial.scores[-1][1]:.4g} after {share:.0%}", key, standing=standing)
        else:
            failed = f"failed: {headline(trial.message)}" if trial.outcome in ERRORS else outcome_text(trial.outcome)
            self.say(stage, "failed", f"{what}: {failed}", key, standing=standing)

    def with_memory(self, standing: Standing | None) -> Standing | None:
        """How the race stands, with what the largest batch takes."""
        largest = self.state.results.largest
        if standing is None or largest is None:
            return standing
        return replace(standing, peak_bytes=largest.peak_bytes, limit_bytes=largest.limit.budget_bytes)

    def report(
        self, facts: TaskFacts, device: DeviceInfo, largest: MaxBatch, not_compared: str | None = None
    ) -> Report:
        """The report of the measurements, without the race."""
        missing = self.close_central()
        pool = self.runner if isinstance(self.runner, Pool) else None
        return measured_report(
            self.state,
            facts=facts,
            device=device,
            largest=largest,
            ledger=self.ledger,
            workers=1 if pool is None else pool.size,
            remarks=(*(() if missing is None else (missing,)), *(() if pool is None else pool.remarks)),
            not_compared=not_compared,
        )
