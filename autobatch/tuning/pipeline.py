"""`tune`, end to end: the stages in order, under one ledger, into one report.

Each stage hands frozen data to the next: task and device -> largest batch -> throughput -> range test -> race ->
confirmation -> report. Nothing here decides a number; it says which stage gets what.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..core.checkpoints import checkpoint_path, is_whole
from ..core.facts import DeviceInfo, TaskFacts
from ..core.measurement import Measurement
from ..core.progress import Listener, Progress
from ..core.runner import Runner
from ..core.units import format_duration, format_lr, format_size
from ..engines.group import open_workers
from ..engines.pool import Pool
from ..engines.served import RunnerSpec
from ..errors import (
    BudgetTooShort,
    NoValidResult,
    ReportError,
    SettingError,
    StorageError,
    WorkerTimeout,
    after_warnings,
)
from ..measuring.allowance import Allowance
from ..measuring.bracket import fits
from ..measuring.learning_rate import LrCurve, find_lr_curve
from ..measuring.memory import MaxBatch, find_max_batch_size
from ..measuring.profiling import profile
from ..measuring.throughput import ThroughputCurve
from ..reports.report import Report
from ..runs.conditions import (
    Condition,
    changes,
    check_conditions,
    conditions_of_task,
)
from ..runs.run_folder import RunFolder, RunState
from ..runs.settings import TuneSettings
from ..searching.budget.advice import MEMORY_SHARE, PROFILE_SHARE, SWEEP_SHARE, give_at_least
from ..searching.budget.costs import least_budget_s, worth_step_s
from ..searching.budget.ledger import Ledger
from ..searching.crew import Alone
from ..searching.limits import MemoryLimits
from ..searching.trials import ERRORS, optimizer_step_s
from ..searching.verdict.failures import failed_trials, headline
from ..searching.verdict.stability import norms_out_of_line

if TYPE_CHECKING:
    from ..searching.search import Event, Kept, SearchResult
    from ..searching.storage.central import CentralRecord

# No batch beyond this is looked for where the data does not end the search first. Assumed: past any batch in use.
CEILING = 131_072
# The same for `tune` on data that does not say its size. Assumed: an eighth of a small image data set.
_TUNE_CEILING = 4096
# A batch of more than this share of the data is not tried: it would leave fewer than eight steps an epoch. Assumed.
_DATA_SHARE = 8
# Half a minute is enough of a profile, but where the budget pays for trials whose steps take seconds. Assumed.
_PROFILE_LONG_SHARE = 0.01
_PROFILE_ENOUGH_S = 30.0
_SWEEP_STEPS = (30, 100)  # fewest and most; 100 as in the measured comparison of the rules
_SETTING_OUT_S = 600.0  # assumed: no resumed run needs longer until its first worker has opened the task
# For the last lines to reach the database: within the budget, but for the second figure. Assumed: they take tenths.
_CENTRAL_S, _CENTRAL_LEAST_S = 5.0, 0.5
_OPENING = "opening and checking the task (model(), train_data(), val_data(), a step and an evaluation)"
# Of a rehearsal of the end (a table drawn, the state saved), what the end takes: the report is drawn and saved, the
# state saved, workers are ended. Measured: 0.65 s of workers and saving and 0.67 s of drawing, where ten processes
# shared a core and a rehearsal took 0.3 s.
_END_REHEARSALS = 4
_EVAL_BATCH = 1024  # assumed: beyond it a forward pass without gradients gains nothing on the devices we know


def describe_probe(probe: Measurement) -> str:
    """One line about a memory probe."""
    outcome = {"over_limit": "over the limit", "oom": "out of memory", "nonfinite": "ran, but the loss is not a number"}
    text = f"batch {probe.plan.batch_size}: {outcome.get(probe.outcome, probe.outcome)}"
    return text if probe.peak_bytes is None else f"{text}, peak {format_size(probe.peak_bytes)}"


def sweep_steps(curve: ThroughputCurve, left_s: float) -> int | None:
    """Steps of a range test at the knee that its share of the time that is left pays for; None where too few."""
    fewest, most = _SWEEP_STEPS
    affordable = int(SWEEP_SHARE * left_s / curve.step_s(curve.knee_batch_size))
    return min(most, affordable) if affordable >= fewest else None


def run_tune(
    folder: RunFolder,
    state: RunState,
    spec: RunnerSpec,
    listen: Listener,
    *,
    started_s: float | None,
    force: bool = False,
    storage: str | None = None,
) -> Report:
    """The whole of `tune` for a task that workers can open, or what is left of it; see `api.tune` for what it raises.

    Args:
        folder: of the run, held by this process.
        state: where the run stands.
        spec: the task and its device.
        listen: told what happens.
        started_s: `time.monotonic()` when the program began; a resumed run is not charged for that.
        force: go on though the conditions have changed.
        storage: URL of a database that the race is recorded in too; the one in the settings is only for people.
    """
    kept = None
    if state.resumed:
        from ..searching.storage.journal import read_kept  # optuna, which a new run imports while its worker is at work

        kept = read_kept(folder.journal) if folder.journal.exists() else None
    settings, is_setting_out = state.settings, bool(state.resumed)
    carried = kept.state.charged if kept is not None else state.charged
    ledger = Ledger(settings.budget_s, started_s=None if state.resumed else started_s, carried=carried)
    spec = replace(spec, checkpoints=folder.checkpoints)

    def remaining_s() -> float:
        return _SETTING_OUT_S if is_setting_out else ledger.available_s

    runner = _opened(spec, settings, folder, remaining_s)
    run: _Tune | None = None
    try:
        if is_setting_out:  # starting workers and checking the task again is downtime
            runner.facts()
            ledger = Ledger(settings.budget_s, carried=carried)
            is_setting_out = False
        run = _Tune(runner, ledger, listen, folder, state, kept=kept, force=force, storage=storage)
        report = run.run()
        try:
            report.save(folder.report)
        except ReportError as error:  # as for every other file of the run: it goes on when there is room
            raise StorageError(str(error)) from None
        if not report.interrupted:
            run.finish()
        return report
    except WorkerTimeout as error:
        # Rungs and the test answer for their own time: what the end of the budget cuts off is a stage before the race.
        if error.is_hang:
            raise
        told = f"the budget of {format_duration(settings.budget_s)} ended before anything could be compared: {error}. "
        doing = _OPENING if run is None else run.doing
        with after_warnings(error.warnings):
            what_would_do = _what_would_do(doing, run)
            raise BudgetTooShort(f"{told}{what_would_do}. What the task printed is in {folder.log}") from None
    finally:
        if run is not None:
            run.close_central()
        runner.close()


def _what_would_do(doing: str, run: _Tune | None) -> str:
    """The remedy where the time ended while `doing` was under way: time, as far as anything says how much it takes."""
    if run is not None and (needed_s := run.least_s()) is not None and needed_s > run.settings.budget_s:
        return give_at_least(needed_s)
    return (
        f"It is not known how long {doing} takes, only that this budget was too short for it: see first whether it "
        "ends at all, and then give several times what it takes by itself"
    )


def _opened(spec: RunnerSpec, settings: TuneSettings, folder: RunFolder, remaining_s: Callable[[], float]) -> Runner:
    """The workers, where the user wants them."""
    if settings.engine == "local":
        return open_workers(spec, log=folder.log, remaining_s=remaining_s)
    if spec.nproc > 1:
        raise SettingError(
            f"on a cluster each worker trains a trial by itself; found --nproc {spec.nproc} with --engine ray: leave "
            "one of them out"
        )
    # Ray takes SIGTERM for itself when it is imported and when it starts, and what it does then is to exit.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        from ..engines.ray import open_cluster  # an extra

        return open_cluster(spec, settings.address, checkpoints=folder.checkpoints, remaining_s=remaining_s)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


class _Tune:
    """One run under way: what the stages share, and what they have found so far."""

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
        self.doing = _OPENING
        self.timed: dict[int, float] = {}  # seconds of a step that a probe took, by its batch size
        self.central: CentralRecord | None = None

    def run(self) -> Report:
        with self.ledger.charge("start-up"):
            facts = self.runner.facts()
            device = self.runner.device()
            with after_warnings(facts.warnings):
                self.open_central(facts, device)
        with after_warnings(facts.warnings):
            return self.stages(facts, device)

    def stages(self, facts: TaskFacts, device: DeviceInfo) -> Report:
        """All that comes after the check of the task."""
        self.say("start", f"{facts.name} on {device.name}")
        self.go_on_under(conditions_of_task(facts, device, self.settings.workers or 1))
        if self.state.resumed:
            self.say("start", f"resumed, with {format_duration(self.ledger.elapsed_s)} of the budget spent")
        if facts.val_size is None or facts.has_test_data:
            self.see_evaluation_end()
        found = self.state.found
        if (largest := found.largest) is None:
            largest = self.largest_batch(facts)
            self.keep(largest=largest)
        if (micro_batch := found.micro_batch) is None:
            micro_batch = self.largest_micro_batch(facts, largest)
            self.keep(micro_batch=micro_batch)
        if (curve := found.curve) is None:
            curve = self.throughput(facts, largest)
            self.keep(curve=curve)
        curve = replace(curve, rule=largest.rule)
        if (sweep := found.sweep) is None and not found.is_swept:
            sweep = self.range_test(facts, curve, int(largest), micro_batch)
            self.keep(sweep=sweep, is_swept=True)
        result = self.race(facts, curve, sweep, int(largest), micro_batch)
        return self.report(facts, largest, curve, sweep, result)

    def see_evaluation_end(self) -> None:
        """Told now where validation data never ends, and not when everything but an evaluation is known."""
        # Imported here, as in `race`.
        from ..searching.budget.costs import longest_evaluation_s

        with self.ledger.charge("evaluation"):
            self.runner.see_evaluation_end(longest_evaluation_s(self.ledger.available_s))

    def open_central(self, facts: TaskFacts, device: DeviceInfo) -> None:
        """The database, if there is to be one: told now where it cannot be opened, and not after an hour."""
        if self.storage is None:
            if (earlier := self.settings.storage) is not None:
                remark = (
                    f"the central record {earlier} was not gone on with: a run's folder does not decide where data is "
                    "written, and has no password. Give --storage again"
                )
                self.say("start", remark)
                self.save(remarks=tuple(dict.fromkeys((*self.state.remarks, remark))))
            return
        # Imported here: a run without a database imports optuna while its worker is at work.
        from ..searching.storage.central import CentralRecord

        self.central = CentralRecord(
            self.storage,
            self.settings.study or f"{facts.name} {self.state.created}",
            facts.direction,
            {"autobatch": __version__, "device": device.name},
            must_open=not self.state.resumed,
        )
        self.say("start", f"also recorded in {self.central.shown}")

    def close_central(self) -> str | None:
        """Bring the database up to date, in what time there is; what it lacks then, in a sentence."""
        if self.central is None:
            return None
        central, self.central = self.central, None
        return central.close(min(_CENTRAL_S, max(_CENTRAL_LEAST_S, self.ledger.available_s)))

    def go_on_under(self, now: Mapping[str, Condition]) -> None:
        """Note the conditions that the worker tells, and refuse to mix trials of one run that are of others.

        Raises:
            RunError: they have changed.
        """
        check_conditions(self.folder.path, self.state.conditions, now, force=self.force)
        remarks = self.state.remarks
        if lines := changes(self.state.conditions, now):
            remarks += (f"the run was resumed under other conditions: {'; '.join(lines)}",)
        self.save(conditions={**self.state.conditions, **now}, remarks=remarks)

    def keep(self, **found: Any) -> None:
        """Add to what the stages have found."""
        self.save(found=replace(self.state.found, **found))

    def save(self, **changed: Any) -> None:
        """Bring the state on the disk up to date."""
        self.state = replace(self.state, **changed, charged=self.ledger.entries())
        with self.ledger.charge("record"):
            self.folder.save(self.state)

    def finish(self) -> None:
        """The report is there: what would only be needed to resume goes."""
        self.save(is_finished=True)
        with suppress(OSError):  # not empty where checkpoints are to be kept
            self.folder.checkpoints.rmdir()

    def least_s(self) -> float | None:
        """Seconds of a budget that pays for a race, by the largest step that was timed; None where none was."""
        if not self.timed:
            return None
        facts, size = self.runner.facts(), max(self.timed)
        own = facts.baseline.plan
        # In proportion to the batch, which is the most that a step grows by.
        step_s = self.timed[size] * max(1.0, own.batch_size / size) * own.accumulation_steps
        return least_budget_s(step_s, eval_s=self.state.found.eval_s or 0.0, spent_s=self.ledger.elapsed_s)

    def say(self, stage: str, text: str, predicted_s: float | None = None, piece: int | None = None) -> None:
        self.listen(Progress(stage=stage, text=text, predicted_s=predicted_s, piece=piece))  # type: ignore[arg-type]

    def largest_batch(self, facts: TaskFacts) -> MaxBatch:
        """No further than the race could use, and than it is worth the time: the race takes no size whose steps it
        could not take often enough, nor one that is far above the knee. The baseline's own batch at least.
        """
        size = None if facts.train_size is None else facts.train_size // facts.baseline.plan.ranks
        useful = _TUNE_CEILING if size is None else max(1, size // _DATA_SHARE)
        own = facts.baseline.plan.batch_size
        ceiling = max(useful, own)
        self.doing = "a probe of the largest batch"
        left_s = self.ledger.available_s
        ends_s = self.ledger.elapsed_s + MEMORY_SHARE * left_s
        allowance = Allowance(
            left_s=lambda: ends_s - self.ledger.elapsed_s,
            worth_s=worth_step_s(left_s, self.settings.train_time_s),
            time_s=left_s,
        )
        with self.ledger.charge("memory"):
            return find_max_batch_size(
                self.runner,
                facts.smallest_plan,
                ceiling=ceiling,
                ceiling_is="dataset" if size is not None and ceiling >= size // _DATA_SHARE else "ceiling",
                own=own,
                allowance=allowance,
                on_probe=self.on_probe,
            )

    def on_probe(self, probe: Measurement) -> None:
        """Tell it, and note what a step took."""
        self.say("memory", describe_probe(probe))
        if probe.step_s:
            self.timed[probe.plan.batch_size] = probe.step_s[-1]

    def largest_micro_batch(self, facts: TaskFacts, largest: MaxBatch) -> int:
        """The largest that fits beside gradients that are kept; 0 where no step is to accumulate.

        Accumulation is for what does not fit or is not taken. Past a size that only time or a ceiling kept from being
        probed, larger ones are slow or unknown, and no less so in parts.

        Of the powers of two, because the race's batches are, and so their largest divisors, or of the multiples that
        the task takes; and of the baseline's own, where it accumulates.
        """
        if not facts.accumulates or largest.limited_by in ("time", "ceiling"):
            return 0
        if not largest.has_no_room_above:
            return int(largest)
        own, most = facts.baseline.plan, int(largest)
        step = largest.rule.multiple_of
        sizes = {size for exponent in range(most.bit_length()) if (size := step << exponent) <= most}
        sizes = set(filter(largest.rule.takes, sizes))
        if own.accumulation_steps > 1 and own.batch_size <= most:
            sizes.add(own.batch_size)
        with self.ledger.charge("memory"):
            for size in sorted(sizes, reverse=True):
                plan = replace(facts.smallest_plan, batch_size=size, accumulation_steps=2)
                probe = self.runner.probe(plan, verdict=True)
                self.say("memory", f"accumulating, {describe_probe(probe)}")
                if fits(probe, largest.limit, verdict=True):
                    return size
        return 0

    def throughput(self, facts: TaskFacts, largest: MaxBatch) -> ThroughputCurve:
        left_s = self.ledger.available_s
        budget_s = min(PROFILE_SHARE * left_s, max(_PROFILE_ENOUGH_S, _PROFILE_LONG_SHARE * left_s))
        baseline = facts.baseline.plan.batch_size
        self.doing = "timing a step"
        with self.ledger.charge("profile"):
            curve = profile(
                self.runner,
                facts.smallest_plan,
                max_batch=int(largest),
                budget_s=budget_s,
                include=[baseline] if baseline <= largest else [],
                rule=largest.rule,
            )
        self.say("profile", curve.describe_knee())
        return curve

    def range_test(self, facts: TaskFacts, curve: ThroughputCurve, largest: int, micro_batch: int) -> LrCurve | None:
        """At the knee; as many steps as its share of the budget pays for, none where that is too few."""
        plan = curve.plan_for(curve.ranks * curve.knee_batch_size, largest, facts.precision, micro_batch)
        steps = sweep_steps(curve, self.ledger.available_s)
        if plan is None or steps is None:
            fewest, _ = _SWEEP_STEPS
            self.say("range test", f"left out: {fewest} steps would take more than {SWEEP_SHARE:.0%} of what is left")
            return None
        self.doing = f"a range test of {steps} steps"
        try:
            with self.ledger.charge("range test"):
                found = find_lr_curve(self.runner, plan, steps=steps, seed=self.settings.seed)
        except NoValidResult as error:  # the search can do without
            self.say("range test", f"left out: {error}")
            return None
        what = "no suggestion" if found.suggestion is None else f"suggests {format_lr(found.suggestion)}"
        left_out = ", without the task's schedule" if found.sweep.without_schedule else ""
        self.say("range test", f"{found.rule} {what} at batch {plan.effective_batch_size}{left_out}")
        return found

    def race(
        self, facts: TaskFacts, curve: ThroughputCurve, sweep: LrCurve | None, largest: int, micro_batch: int
    ) -> SearchResult:
        # Imported here, where the worker has long been started: optuna takes half a second.
        from ..searching.search import SearchSettings, horizon_s, search
        from ..searching.storage.journal import StudyRecord

        eval_batch = min(largest, facts.val_size or largest, _EVAL_BATCH)
        if (eval_s := self.state.found.eval_s) is None:
            known = "" if facts.val_size is not None else ", which does not say its size and may have no end,"
            self.doing = f"an evaluation on val_data(){known}"
            self.timed.clear()  # what steps take does not say how long an evaluation does
            with self.ledger.charge("evaluation"):
                eval_s = self.runner.time_evaluation(eval_batch)
        crew = self.runner.crew() if isinstance(self.runner, Pool) else Alone(self.runner)
        if (horizon := self.state.found.horizon_s) is None:
            limits = MemoryLimits(
                times=curve,
                precision=facts.precision,
                max_batch=largest,
                max_micro_batch=micro_batch if facts.accumulates else 0,
            )
            trained = limits.as_trained(facts.baseline.plan, accumulates=facts.accumulates)
            baseline_step_s = optimizer_step_s(trained, curve)
            horizon = horizon_s(
                self.ledger.available_s,
                self.settings.train_time_s,
                eval_s=eval_s,
                baseline_step_s=baseline_step_s,
                spent_s=self.ledger.elapsed_s,
                at_once=crew.size,
            )
            self.keep(eval_s=eval_s, horizon_s=horizon)
        with self.ledger.charge("record"):
            self.keep_back_for_the_end(curve)
        record = StudyRecord(self.folder.journal, facts.name, facts.direction, central=self.central)
        self.say("search", f"comparing at T = {format_duration(horizon)} of training each")
        settings = SearchSettings(
            seed=self.settings.seed,
            sampler=self.settings.search,
            earlier=tuple((one.config, one.origin) for one in self.settings.earlier),
            keep_checkpoints=self.settings.keep_checkpoints,
            most_trials=self.settings.max_trials,
        )
        return search(
            self.runner,
            self.ledger,
            curve,
            max_batch=largest,
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

    def keep_back_for_the_end(self, curve: ThroughputCurve) -> None:
        """Keep as much time for what follows the race as a rehearsal of it says on this machine, as busy as it is."""
        from ..render.terminal import rehearse  # its imports are part of the end, and are made here

        rehearse(curve.to_json())
        begun_s = self.ledger.elapsed_s
        rehearse(curve.to_json())
        self.save()
        self.ledger.keep_back(_END_REHEARSALS * (self.ledger.elapsed_s - begun_s))

    def with_checkpoints(self, kept: Kept) -> Kept:
        """The trials of a record, without hope for those whose checkpoint is gone, or there in part alone; the baseline
        begins again.
        """
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
        if event.trial is None:
            self.say("confirmation", "the finalist under fresh seeds")
            return
        trial, plan = event.trial, event.trial.config.plan
        stage = "confirmation" if trial.role == "confirmation" else "search"
        what = f"trial {trial.number}: batch {plan.effective_batch_size}, lr {format_lr(trial.config.lr)}"
        if event.kind == "rung started":
            self.say(stage, what, event.predicted_s, trial.number)
            return
        share = trial.steps_done / trial.total_steps
        found = f"{trial.scores[-1][1]:.4g} after {share:.0%}" if trial.outcome == "ok" else trial.outcome
        if trial.outcome in ERRORS:
            found = f"failed: {headline(trial.message)}"
        self.say(stage, f"{what}: {found}", piece=trial.number)

    def report(
        self,
        facts: TaskFacts,
        largest: MaxBatch,
        curve: ThroughputCurve,
        sweep: LrCurve | None,
        result: SearchResult,
    ) -> Report:
        limits = {
            "memory": f"batch {int(largest)} is the largest that fits in {format_size(largest.limit.budget_bytes)}",
            "dataset": f"batch {int(largest)} fits, and the data is too small for a larger one to be worth trying",
            "ceiling": f"batch {int(largest)} fits, and no larger one was looked for",
            "task": f"batch {int(largest)} is the largest that the task takes",
            "time": f"batch {int(largest)} fits; larger ones would have taken more of the budget than they are worth",
        }
        warnings = [*facts.warnings, *facts.assumptions, *largest.assumed]
        starved = curve.describe_starvation()
        if starved is not None:
            warnings.append(starved)
        warnings += [
            f"{earlier.origin} is of a task called {earlier.task}"
            for earlier in self.settings.earlier
            if earlier.task != facts.name
        ]
        norms = norms_out_of_line(result.chosen, result.history)
        if norms is not None:
            warnings.append(norms)
        warnings += failed_trials(result.history)
        warnings += self.state.remarks
        if (missing := self.close_central()) is not None:
            warnings.append(missing)
        at_once: tuple[str, ...] = ()
        if isinstance(self.runner, Pool):
            warnings += self.runner.remarks
            if self.runner.size > 1:
                at_once = (f"{self.runner.size} workers trained a trial each at the same time",)
        # The race may have had to accumulate a baseline that does not fit.
        raced = result.history.baseline
        return Report(
            task=facts.name,
            created=self.state.created,
            command=self.settings.command,
            version=__version__,
            device=self.runner.device(),
            direction=facts.direction,
            budget_s=self.settings.budget_s,
            horizon_s=result.horizon_s,
            train_time_s=self.settings.train_time_s,
            plan=result.chosen,
            chose_baseline=result.chose_baseline,
            baseline_plan=raced.config if raced else facts.baseline,
            baseline_is_users=facts.baseline_is_users,
            probability=result.probability,
            is_proven=result.is_proven,
            score=result.score,
            baseline=result.baseline,
            test_score=result.test_score,
            test_baseline=result.baseline_test_score,
            max_batch=largest.to_json(),
            throughput=curve.to_json(),
            learning_rate=sweep.to_json() if sweep else None,
            trials=tuple(trial.to_json() for trial in result.trials),
            ledger=self.ledger.to_json(),
            why=(*result.why, *at_once, limits[largest.limited_by], curve.describe_knee()),
            warnings=tuple(warnings),
            interrupted=result.interrupted,
            lost_device=result.lost_device,
            long_run=self.beyond(result),
        )

    def beyond(self, result: SearchResult) -> dict[str, Any] | None:
        """What the race says of the user's training where that is longer than T; None where it is not."""
        from ..searching.verdict.long_run import look_ahead

        train_time_s = self.settings.train_time_s
        # Within a hundredth it is the same horizon: T is a whole number of optimizer steps.
        if train_time_s is None or result.horizon_s >= 0.99 * train_time_s:
            return None
        return look_ahead(result, train_time_s).to_json()
