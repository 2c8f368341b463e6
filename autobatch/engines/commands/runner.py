"""`CommandRunner`: a runner that runs a script as it is typed, once for each question.

What is asked in optimizer steps is put into the command's places: `{max_steps}`, or the seconds that those steps take
by the profile, `{max_seconds}`; a command that has neither is stopped when they are over. Each run is a process of its
own, so that nothing of one is left in the next; where the command has no `{checkpoint}`, nothing of its training is.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.checkpoints import forget_checkpoints
from ...core.facts import DeviceInfo, MemoryLimit, TaskFacts
from ...core.measurement import LrSweep, Measurement, Outcome
from ...core.plan import Config, Plan
from ...core.progress import Stage
from ...core.runner import Runner
from ...core.segment import TRAINING_AGAIN, SegmentOutcome, SegmentResult, TrainSegment
from ...core.units import format_duration
from ...devices import host_memory
from ...devices.environment import default_threads
from ...devices.limits import budget_bytes, capacity, check_limit
from ...errors import DeviceError, NoValidResult, TaskError, WorkerTimeout
from ...tasks.command import Command, values_of
from ..processes.timeouts import PROBE_TIMEOUT_S
from .kept import Kept
from .output import Output
from .running import Ran, run
from .watcher import Watcher

# Steps of the run that shows that a command works, and of the longer one by whose difference a step is timed. Assumed:
# a loader is warm after fewer, and few models need minutes for so many.
_CHECK_STEPS, _LONGER_STEPS = 8, 32
_CHECK_S = 2.0  # the same for a command that takes seconds
# Steps of a probe: one that makes the optimizer's state, and one beside it; some more for a final probe.
_PROBE_STEPS, _FINAL_STEPS = 2, 4
# A probe of a command that cannot be told how long to run, and says nothing by which its steps could be seen. Assumed:
# it is well in its first steps by then.
_PROBE_S = 20.0
_FEWEST_STEPS = 8  # that are timed; assumed
_MOST_STEPS = 1 << 20  # that are timed; assumed: a step of a microsecond takes a second for so many
# A start-up differs by this share of itself from one run to the next. Assumed.
_UNSURE = 0.1
# Runs that time a size, each with so many times the steps at most, until they fill the time. Assumed.
_MOST_TIMINGS, _MORE_STEPS = 4, 16
# A part of the budget that the first run may take at most, to see whether a script comes to its own end: as much as one
# trial of the race (searching/budget/costs.py).
_OWN_LENGTH_SHARE = 1 / 16
# A first score comes so many times as late in a bad moment. Assumed.
_LATER = 1.25
# So much longer than the time it was meant to train may a run take to its first score. Assumed.
_PATIENCE = 2.0
_HEADROOM_OF_FREE = 0.02  # of free memory, before the kernel begins to kill; assumed

NO_RANGE_TEST = "a range test needs the loss at each step, which a command does not tell"
NO_SPEED = "it is not told in steps how long to train ({max_steps}), and tells no samples/s"


class CommandRunner(Runner):
    """Runs a command.

    Args:
        command: what to run.
        memory_limit_bytes: that all of its processes together may hold; None for what is free.
        headroom: the share of it that stays free.
        checkpoints: folder of paused trials; None for one that ends with this runner.
        log: file that its output is added to; None for none.
        remaining_s: seconds that a call may still take; None for no limit.
        is_checked: run it once before anything else, to see that it works and tells a score.
        probe_timeout_s: after so long a run of a few steps is taken to hang.
    """

    def __init__(
        self,
        command: Command,
        *,
        memory_limit_bytes: int | None = None,
        headroom: float = 0.05,
        checkpoints: Path | None = None,
        log: Path | None = None,
        remaining_s: Callable[[], float] | None = None,
        is_checked: bool = True,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        check_limit(memory_limit_bytes, headroom)
        command.check_program()
        self._command, self._asked_bytes, self._headroom = command, memory_limit_bytes, headroom
        self._log, self._remaining_s, self._is_checked = log, remaining_s, is_checked
        self._probe_timeout_s = probe_timeout_s
        self._home = tempfile.TemporaryDirectory(prefix="autobatch-")
        home = Path(self._home.name)
        self._kept = Kept(home / "kept" if checkpoints is None else checkpoints, home / "work")
        self._script_log = home / "log"
        self._watcher = Watcher()
        self._facts: TaskFacts | None = None
        self._device: DeviceInfo | None = None
        self._limit: MemoryLimit | None = None
        self._fixed_s = 0.0  # of a run: its start-up and its evaluation, whatever it trains
        self._step: tuple[Plan, float] | None = None  # the latest that was timed
        self._shown: Measurement | None = None  # what the first run shows of the baseline's memory
        self._report_s: float | None = None  # from the start of a run to the first thing that it said
        self._is_closed = False

    # -- one run ------------------------------------------------------------------------------------------------------

    def _run(
        self,
        title: str,
        plan: Plan,
        lr: float,
        *,
        seed: int = 0,
        steps: int = 1,
        total_steps: int | None = None,
        seconds: float = 0.0,
        is_over: Callable[[Output, float], bool] | None = None,
        limit_s: float,
    ) -> Ran:
        """The command with its places filled in, to its end.

        Args:
            title: what it is run for.
            plan, lr, seed: of its training.
            steps, total_steps: after which it ends, and of the whole; for a command that is told steps.
            seconds: that it trains; for a command that is told them.
            is_over: of a command that is told neither, whether it is to be stopped.
            limit_s: after which it is taken to hang.

        Raises:
            WorkerTimeout: the time for everything is over.
        """
        command = self._command
        values = values_of(plan, lr) | {
            "seed": str(seed),
            "max_steps": str(steps),
            "total_steps": str(steps if total_steps is None else total_steps),
            "max_seconds": _typed_seconds(seconds),
            "checkpoint": str(self._kept.path),
        }
        words, variables = command.filled(values)
        output = Output(command, values, self._script_log)
        left_s = math.inf if self._remaining_s is None else max(0.0, self._remaining_s())
        ran = run(
            words,
            output,
            environment=variables,
            script_log=self._script_log,
            log=self._log,
            title=f"{title}: {' '.join(words)}",
            watcher=self._watcher,
            is_over=is_over if is_over is not None and command.length == "stop" else _never,
            limit_s=min(limit_s, left_s),
            grace_s=command.grace_s,
            limit_bytes=self.memory().capacity_bytes,
            signals_all=command.shell,
        )
        if ran.how == "limit" and left_s < limit_s:
            raise WorkerTimeout(f"{title} took longer than the {left_s:.1f} s it had; the command was ended")
        return ran

    # -- what is known without training -------------------------------------------------------------------------------

    def facts(self) -> TaskFacts:
        if self._facts is None:
            command = self._command
            config, is_users = command.baseline_config()
            without: dict[Stage, str] = {"range test": NO_RANGE_TEST}
            facts = TaskFacts(
                name=command.title,
                train_size=None,
                val_size=None,
                direction=command.direction or "minimize",
                baseline=config,
                baseline_is_users=is_users,
                accumulates="accumulation_steps" in command.places,
                warnings=tuple(self._warnings()),
                without=without,
                resumes=command.resumes,
                has_seeds="seed" in command.places,
                typed=command.command,
            )
            if self._is_checked:
                facts = self._checked(facts, config)
            self._facts = facts
        return self._facts

    def learn(self, facts: TaskFacts) -> None:
        self._facts = facts

    def _warnings(self) -> list[str]:
        command, said = self._command, []
        if command.length == "stop":
            said.append(
                "the command cannot be told how long to train ({max_steps} or {max_seconds}): each run was stopped by "
                "SIGTERM when its time was over, start-up included, and the last score before that counts"
            )
        if "seed" not in command.places:
            said.append(
                "the command cannot be told a seed ({seed}): what was chosen was only run again. If the script draws "
                "another seed each time, that is as good; if its seed is fixed, it confirms nothing"
            )
        if "accumulation_steps" not in command.places:
            said.append(
                "the command cannot accumulate gradients ({accumulation_steps}): no batch was tried that does not fit"
            )
        return said

    def _checked(self, facts: TaskFacts, config: Config) -> TaskFacts:
        """The facts, with what a run of the baseline shows.

        Raises:
            TaskError: it fails, or tells no score.
        """
        length = self._command.length
        self._kept.clear()
        least_s, own_length_s = 0.0, None
        if length == "stop":
            left_s = math.inf if self._remaining_s is None else self._remaining_s()
            enough_s = _OWN_LENGTH_SHARE * left_s

            def has_shown(output: Output, spent_s: float) -> bool:
                return output.has_score and spent_s >= enough_s

            ran = self._try(config, "a first run", is_over=has_shown, limit_s=math.inf)
            first_s = ran.output.first_score_s - ran.began_s
            own_length_s = ran.seconds if ran.how == "itself" else None
            least_s = min(_LATER * first_s, math.inf if own_length_s is None else own_length_s)
            self._report_s = first_s
        elif length == "seconds":
            ran = self._try(config, f"a run of {_CHECK_S:.0f} s", seconds=_CHECK_S)
            self._fixed_s = max(0.0, ran.seconds - _CHECK_S)
        else:
            ran = self._try(config, f"a run of {_CHECK_STEPS} steps", steps=_CHECK_STEPS)
            self._learn_steps(config, ran)
        self._shown = self._measured(config.plan, ran, _CHECK_STEPS)
        without = dict(facts.without)
        if length != "steps" and ran.output.samples_per_s(config.plan.effective_batch_size) is None:
            without["profile"] = NO_SPEED
        rung_s = max(least_s, self._fixed_s)
        return replace(facts, without=without, least_s=least_s, rung_s=rung_s, own_length_s=own_length_s)

    def _learn_steps(self, config: Config, ran: Ran) -> None:
        """What of a run's time does not depend on its steps, and what a step takes."""
        plan, samples = config.plan, config.plan.effective_batch_size
        speed = ran.output.samples_per_s(samples)
        if speed is not None:
            step_s = samples / speed
        else:
            self._kept.clear()
            longer = self._try(config, f"a run of {_LONGER_STEPS} steps", steps=_LONGER_STEPS)
            step_s = max(0.0, longer.seconds - ran.seconds) / (_LONGER_STEPS - _CHECK_STEPS)
        self._fixed_s = max(0.0, ran.seconds - _CHECK_STEPS * step_s)
        # Nothing shorter can be told from a start-up that took a little longer.
        self._step = (plan, max(step_s, _UNSURE * self._fixed_s / _LONGER_STEPS))

    def _try(self, config: Config, title: str, **how: Any) -> Ran:
        """A run of the baseline, which has to work.

        Raises:
            TaskError: it does not.
        """
        how = {"limit_s": self._probe_timeout_s} | how
        ran = self._run(f"{title} at the baseline", config.plan, config.lr, **how)
        command, score = self._command, ran.score
        with_what = f"at batch size {config.plan.batch_size} and lr {config.lr:g}"
        if ran.ran_out_of_memory:
            raise TaskError(f"the command runs out of memory {with_what}, which the baseline is: {ran.why}")
        if ran.failed:
            raise TaskError(f"the command fails {with_what}: {ran.why}")
        if ran.how == "limit":
            place = {"steps": "{max_steps}", "seconds": "{max_seconds}"}[command.length]
            raise TaskError(
                f"{title} did not end within {format_duration(ran.seconds)}: a script that has {place} ends by itself "
                f"when that is over. Its last words:\n{ran.output.last_words}"
            )
        if score is None:
            raise TaskError(self._without_score(ran))
        if not math.isfinite(score):
            raise TaskError(
                f"the score of the command is no number {with_what}, which the baseline is: {ran.output.last_line}"
            )
        if command.resumes and not self._kept.has_been_left:
            raise TaskError(
                "the command has {checkpoint}, and left nothing there when it ended: save there what to go on from"
                + (", also when it is told to end (SIGTERM)" if command.length == "stop" else "")
                + ", and go on from what lies there; or take {checkpoint} out, and each run begins from nothing"
            )
        return ran

    def _without_score(self, ran: Ran) -> str:
        """What to say of a run that told no score."""
        command = self._command
        if command.pattern is not None:
            why = f"no line of its output matches {command.score!r}"
        elif command.file_and_key is not None:
            file = command.file_and_key[0]
            why = ran.output.file_problem or f"it did not write {file}"
        else:
            why = (
                "nothing says where it is. Give --score with a pattern for a line of output, --score-file FILE:KEY for "
                "a JSON file, or call autobatch.log(score) in the script"
            )
        return f"the command ended without a score: {why}. {ran.why[0].upper()}{ran.why[1:]}"

    def device(self) -> DeviceInfo:
        if self._device is None:
            memory = host_memory.available()
            self._device = DeviceInfo(
                name=host_memory.processor_name() or "CPU",
                kind="cpu",
                memory_bytes=None if memory is None else memory.total_bytes,
                free_bytes=None if memory is None else memory.free_bytes,
                threads=default_threads(),
                notes=("a command is watched from outside: which device it trains on is not known",),
            )
        return self._device

    def memory(self) -> MemoryLimit:
        if self._limit is None:
            free = host_memory.available()
            if free is None:
                if self._asked_bytes is None:
                    raise DeviceError(
                        "the memory of this machine cannot be read, so nothing says what is too large. Give a "
                        "--memory-limit, or run on Linux"
                    )
                usable, source = self._asked_bytes, "the memory limit that was set"
            else:
                free_bytes = budget_bytes(free.free_bytes, _HEADROOM_OF_FREE)
                usable, source = capacity(self._asked_bytes, free_bytes, free.source)
            self._limit = MemoryLimit(
                capacity_bytes=usable,
                budget_bytes=budget_bytes(usable, self._headroom),
                source=f"{source}, for all processes of the command",
            )
        return self._limit

    # -- the stages before a race -------------------------------------------------------------------------------------

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        if self._shown is not None and self._shown.plan == plan:
            return self._shown
        lr = self._command.baseline_config()[0].lr
        steps = _FINAL_STEPS if final else _PROBE_STEPS
        enough_s = _PROBE_S if self._report_s is None else _PATIENCE * self._report_s

        def has_shown(output: Output, spent_s: float) -> bool:
            return output.has_reported or spent_s >= enough_s

        self._kept.clear()
        ran = self._run(
            f"a probe of batch size {plan.batch_size}",
            plan,
            lr,
            steps=steps,
            seconds=_CHECK_S,
            is_over=has_shown,
            limit_s=self._probe_timeout_s + _PATIENCE * self._fixed_s,
        )
        return self._measured(plan, ran, steps)

    def _measured(self, plan: Plan, ran: Ran, steps: int) -> Measurement:
        """What a run of so many steps shows of a plan's memory.

        Raises:
            TaskError: the script has failed, for another reason than its memory.
        """
        limit = self.memory()
        outcome: Outcome = "ok"
        if ran.ran_out_of_memory or ran.output.says_out_of_memory:  # the latter where the script goes on with less
            outcome = "oom"
        elif ran.failed and ran.code > 0:
            raise TaskError(f"the command fails at batch size {plan.batch_size}: {ran.why}")
        elif ran.failed or ran.how == "limit":
            outcome = "crashed"
        elif ran.peak_bytes is not None and ran.peak_bytes > limit.budget_bytes:
            outcome = "over_limit"
        return Measurement(
            plan=plan,
            outcome=outcome,
            step_s=self._step_of_probe(plan, ran, steps) if outcome == "ok" else (),
            peak_bytes=None if outcome == "oom" else ran.peak_bytes,
            seconds=ran.seconds,
            fresh=True,
            message=None if outcome == "ok" else ran.why.partition("\n")[0] if outcome == "over_limit" else ran.why,
        )

    def _step_of_probe(self, plan: Plan, ran: Ran, steps: int) -> tuple[float, ...]:
        """What a step of a probe took; nothing where that cannot be told."""
        if (speed := ran.output.samples_per_s(plan.effective_batch_size)) is not None:
            return (plan.effective_batch_size / speed,)
        if self._command.length != "steps" or self._step is None:
            return ()
        return (max(0.0, ran.seconds - self._fixed_s) / steps,)

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        self.facts()
        samples = plan.effective_batch_size
        aim_s = max(budget_s, self._fixed_s)
        steps = min(_MOST_STEPS, max(_FEWEST_STEPS, math.ceil(aim_s / self._guess_s(plan))))
        lr, begun_s = self._command.baseline_config()[0].lr, time.monotonic()

        def has_shown(output: Output, spent_s: float) -> bool:
            return spent_s >= budget_s and output.samples_per_s(samples) is not None

        for attempt in range(_MOST_TIMINGS):
            self._kept.clear()
            ran = self._run(
                f"timing batch size {plan.batch_size}",
                plan,
                lr,
                steps=steps,
                seconds=max(budget_s, _CHECK_S),
                is_over=has_shown,
                limit_s=self._probe_timeout_s + _PATIENCE * (self._fixed_s + aim_s),
            )
            if ran.failed or ran.how in ("memory", "limit"):
                outcome: Outcome = "oom" if ran.ran_out_of_memory else "crashed"
                return Measurement(plan=plan, outcome=outcome, message=ran.why, seconds=time.monotonic() - begun_s)
            speed = ran.output.samples_per_s(samples)
            if speed is not None or self._command.length != "steps":
                break
            spent_s = ran.seconds - self._fixed_s
            if spent_s >= aim_s / 2 or attempt == _MOST_TIMINGS - 1 or steps == _MOST_STEPS:
                break
            # It is faster than was thought: as many more steps as would fill the time.
            steps = min(_MOST_STEPS, steps * min(_MORE_STEPS, math.ceil(aim_s / max(spent_s, aim_s / _MORE_STEPS))))
        seconds = time.monotonic() - begun_s
        if speed is not None:
            step_s, how = samples / speed, "by the samples/s that the script told"
        elif self._command.length == "steps":
            step_s = max(ran.seconds - self._fixed_s, 1e-3 * ran.seconds) / steps
            how = f"the mean of {steps} steps, start-up and evaluation taken off"
            self._step = (plan, step_s)
        else:
            message = "the script told no samples/s"
            return Measurement(plan=plan, outcome="crashed", message=message, seconds=seconds)
        return Measurement(
            plan=plan, outcome="ok", step_s=(step_s,) * 3, peak_bytes=ran.peak_bytes, remarks=(how,), seconds=seconds
        )

    def _guess_s(self, plan: Plan) -> float:
        """What a step may take, by the latest that was timed: no less than in proportion, where it is smaller."""
        if self._step is None:
            return math.inf
        known, step_s = self._step
        return max(step_s, 1 / _MOST_STEPS) * plan.effective_batch_size / known.effective_batch_size

    def time_evaluation(self, batch_size: int) -> float:
        """What each run takes beside its training: a trial pays for it at each rung, as for an evaluation."""
        self.facts()
        return self._fixed_s

    def sweep_lr(self, plan: Plan, *, lowest: float, highest: float, steps: int, seed: int) -> LrSweep:
        raise NoValidResult(NO_RANGE_TEST)

    # -- the race -----------------------------------------------------------------------------------------------------

    def advance(self, segment: TrainSegment) -> SegmentResult:
        command, begun_s = self._command, time.monotonic()
        start = segment.start_step if command.resumes else 0
        if start:
            self._kept.restore(segment.trial, start)
        else:
            self._kept.clear()
        run_s = segment.until_s * (1 - start / segment.until_step)

        def is_over(output: Output, spent_s: float) -> bool:
            return spent_s >= run_s and (output.has_score or spent_s >= _PATIENCE * run_s)

        try:
            ran = self._run(
                f"trial {segment.trial}, steps {start} to {segment.until_step}",
                segment.config.plan,
                segment.config.lr,
                seed=segment.seed,
                steps=segment.until_step,
                total_steps=segment.total_steps,
                seconds=run_s,
                is_over=is_over,
                limit_s=math.inf if segment.limit_s is None else segment.limit_s,
            )
        except WorkerTimeout as over:
            spent_s = time.monotonic() - begun_s
            message = str(over)
            return SegmentResult(segment=segment, outcome="timeout", message=message, train_s=spent_s, seconds=spent_s)
        result = self._result(segment, ran)
        if result.outcome == "ok" and command.resumes:
            if not self._kept.has_been_left:
                raise TaskError("the command has {checkpoint}, and left nothing there when it ended")
            self._kept.keep(segment.trial, segment.until_step)
        seconds = time.monotonic() - begun_s
        # Start-up and evaluation are known roughly: never more than half of what a run took.
        fixed_s = min(self._fixed_s, ran.seconds / 2)
        again_s = 0.0 if command.resumes else (ran.seconds - fixed_s) * segment.start_step / segment.until_step
        beside_s = {"starting the command": fixed_s, TRAINING_AGAIN: again_s}
        return replace(
            result, train_s=ran.seconds - fixed_s - again_s, beside_s=beside_s, seconds=max(seconds, ran.seconds)
        )

    def _result(self, segment: TrainSegment, ran: Ran) -> SegmentResult:
        """What a run came to, without its times."""
        score = ran.score
        if ran.ran_out_of_memory:
            return SegmentResult(segment=segment, outcome="oom", fresh=True, message=ran.why)
        if ran.how == "limit":
            return SegmentResult(segment=segment, outcome="timeout", fresh=True, message=ran.why)
        if score is not None and not math.isfinite(score):
            return SegmentResult(segment=segment, outcome="diverged", fresh=True, message="the score is no number")
        if ran.failed:
            outcome: SegmentOutcome = "raised" if ran.code > 0 else "crashed"
            return SegmentResult(segment=segment, outcome=outcome, fresh=True, message=ran.why)
        if score is None:
            return SegmentResult(segment=segment, outcome="raised", fresh=True, message=self._without_score(ran))
        return SegmentResult(segment=segment, outcome="ok", fresh=True, score=score)

    def test_score(self, segment: TrainSegment) -> float | None:
        return None

    def forget(self, trial: int, before: int | None = None) -> None:
        forget_checkpoints(self._kept.folder, trial, before)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._watcher.close()
            self._home.cleanup()


def _never(output: Output, spent_s: float) -> bool:
    return False


def _typed_seconds(seconds: float) -> str:
    """As a script may read them: whole from ten up, where a part of one matters to nobody."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2f}"
