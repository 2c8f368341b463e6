"""A race under way. It manages the baseline, the segments in flight, retries and fresh seeds. A search says what to
try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..core.plan import Plan
from ..core.runner import Runner
from ..core.segment import HANG_FACTOR, HANG_LEAST_S, SegmentResult, TrainSegment
from ..errors import DeviceError
from .budget.account import Account, SegmentInFlight
from .budget.costs import Costs
from .budget.ledger import Ledger
from .crew import Crew
from .final_test import FinalTest
from .history import History
from .limits import MemoryLimits
from .preparation import check_time
from .reserve import Reserve
from .retries import attempts, outcome
from .schedulers.base import Budget, Resume, Scheduler, Start
from .schedulers.candidates import Candidates
from .schedulers.promotion import paused_best_first
from .standing import standing_of
from .storage.journal import Kept, StudyRecord
from .storage.race_state import RaceState
from .storage.retention import Checkpoints
from .trials import Event, EventKind, SearchSettings, Trial
from .verdict.confirmation import next_seed_for

# The share of a first fresh seed's time that must be left for it to begin. Assumed: paces vary by as much.
_NEARLY = 0.9

# The factor on predicted times that limits a segment that must leave the reserve, and the reserve itself. Assumed, as
# above.
_ROOM = 1.1


@dataclass(slots=True, kw_only=True)
class Race:
    """A race under way: what it has seen, the time it has, and the next pieces of work.

    A worker that becomes idle gets the next piece of work, which is decided by what is known at that moment.

    Attributes:
        runner, crew: train and evaluate.
        ledger, account: the time.
        limits: what memory should hold.
        baseline: is trained first.
        candidates, scheduler: the configurations that may be tried, and what chooses among them.
        history: all trials.
        notes: further reasons for the report.
        checkpoints, final_test: the files on the disk, and the scores on test data.
        reserve: the time that is kept for fresh seeds.
        test_scores: of the chosen configuration and of the baseline, once the race is over.
        count: how many changes were recorded.
        began_s: when it began, by the ledger.
        again: trials whose worker has died. They wait for another attempt.
        is_confirming: the search is over, and the fresh seeds run.
        is_over: nothing more will run.
    """

    runner: Runner
    crew: Crew
    ledger: Ledger
    limits: MemoryLimits
    account: Account
    eval_batch_size: int
    settings: SearchSettings
    record: StudyRecord | None
    on_event: Callable[[Event], None] | None
    baseline: Start
    candidates: Candidates
    scheduler: Scheduler
    history: History
    notes: list[str]

    checkpoints: Checkpoints = field(init=False)
    final_test: FinalTest = field(init=False)
    reserve: Reserve = field(init=False)
    test_scores: tuple[float | None, float | None] = (None, None)
    count: int = 0
    began_s: float = 0.0
    again: list[int] = field(default_factory=list)
    is_confirming: bool = False
    is_over: bool = False

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.runner, self.settings.keep_checkpoints)
        self.reserve = Reserve(account=self.account, usual=self.settings.confirmations)
        self.final_test = FinalTest(runner=self.runner, account=self.account, eval_batch_size=self.eval_batch_size)

    @property
    def costs(self) -> Costs:
        """The cost of work, by what is known now."""
        return self.account.costs

    # Beginning

    def begin(self, kept: Kept | None = None) -> None:
        """Begin now, or continue where an earlier process was stopped.

        Raises:
            BudgetTooShort: the baseline of a new race could not be trained to the end.
        """
        self.account.allotment_s = self.crew.size * self.ledger.available_s
        self.began_s = self.ledger.elapsed_s
        if kept is not None and kept.trials:
            self._restore(kept)
        else:
            check_time(self.baseline.config.plan, self.costs, self.ledger)

    def _restore(self, kept: Kept) -> None:
        state = kept.state
        self.history = replace(self.history, trials=kept.trials)
        self.baseline = replace(self.baseline, config=kept.trials[0].config)
        self.account.allotment_s, self.account.spent_s = state.allotment_s, state.spent_s
        self.account.paces = state.paces
        self.account.correct_times(self.baseline.config.plan.batch_size)
        self.limits.max_batch, self.limits.max_micro_batch = state.max_batch, state.max_micro_batch
        self.notes, self.count = list(state.notes), state.count
        self.is_over, self.test_scores = state.is_over, state.test_scores
        self.candidates.is_exhausted = state.is_exhausted
        if self.record is not None:  # the earlier process may not have written all states for dashboards
            for trial in kept.trials:
                self.record.save(trial, self._state())
        self.checkpoints.suspect(trial.number for trial in kept.trials)
        self._tidy()

    def _state(self) -> RaceState:
        return RaceState(
            count=self.count,
            allotment_s=self.account.allotment_s,
            spent_s=self.account.spent_s,
            max_batch=self.limits.max_batch,
            max_micro_batch=self.limits.max_micro_batch,
            paces=self.account.paces,
            is_exhausted=self.candidates.is_exhausted,
            notes=tuple(self.notes),
            charged=self.ledger.entries(),
            is_over=self.is_over,
            test_scores=self.test_scores,
        )

    # The race

    def run(self) -> None:
        """Race until nothing more fits, then confirm. Continues from any state."""
        if not self.is_over:
            self._race()
        self._tidy()

    def _race(self) -> None:
        if not self.history.trials:
            self._start(self.baseline)
        while True:
            while self.crew.has_idle:
                if self.again:
                    self._try_again(self.history.trials[self.again.pop(0)])
                elif (work := self._next_segment()) is not None:
                    self._train(*work)
                else:
                    break
            if not self.account.under_way:
                break
            self._take_result()
        self.test_scores, untested = self.final_test.scores(self.history)
        self.notes += untested
        trials = self.history.trials
        if trials[0].state in ("running", "paused") or not any(trial.state == "complete" for trial in trials):
            return  # there is no result, and the trials may go on with more time
        for trial in trials:
            if trial.state == "paused":
                self._update(replace(trial, state="dropped"))
        self.is_over = True
        if self.record is not None:
            self.count += 1
            self.record.end(self._state())

    def _next_segment(self) -> tuple[Trial, int] | None:
        """The trial to train next, and until which step; None if nothing fits, or if a result must come first.

        The order is: the baseline; what was in flight when an earlier process of this run was stopped; the search; and
        when nothing more of the search fits, the fresh seeds.
        """
        baseline = self.history.trials[0]
        if baseline.state in ("running", "paused") and baseline.number not in self.account.under_way:
            until_step = self._next_until(baseline)
            if self._fits(self.costs.segment_s(baseline, until_step)):
                return baseline, until_step
        for trial in self.history.trials[1:]:
            if trial.state == "running" and trial.number not in self.account.under_way:
                until_step = trial.total_steps if trial.role == "confirmation" else self._next_until(trial)
                if self._fits(self.costs.segment_s(trial, until_step) + self.reserve.after_s(trial, self.history)):
                    return trial, until_step
                self._stop(trial)
        # When fresh seeds have begun, the search is over, even if they failed: the time that they leave goes to the
        # next best configuration. It is hardly ever enough for another trial beside the reserve (benchmarks/NOTES.md).
        if not self.is_confirming and not self.history.confirmations:
            suggestion = self._suggestion()
            while suggestion is None and self.account.allot_what_is_left():
                suggestion = self._suggestion()
            if suggestion is None and self.account.under_way:
                return None  # its result may make it worth resuming
            if suggestion is not None:
                trial = self._begun(suggestion)
                return trial, self._next_until(trial)
        if not self.is_confirming:
            self.is_confirming = True
            self._emit("confirming", None)
        return self._next_confirmation()

    def _suggestion(self) -> Start | Resume | None:
        """What the search suggests for the time that is left, without the reserve."""
        if self.history.stuck:
            return None
        left_s = self.account.left_s(*self.reserve.rounds(self.history)) - self.final_test.takes_s
        budget = Budget(costs=self.costs, left_s=left_s, spent_s=self.account.spent_s)
        with self.ledger.charge("deciding"):
            return self.scheduler.suggest(self.history, budget)

    def _next_confirmation(self) -> tuple[Trial, int] | None:
        """The next run under a fresh seed: of the finalist, or of the baseline if it is close. None once no more are
        needed.
        """
        kept = self.reserve.rounds(self.history)
        config = next_seed_for(self.history, kept[0], kept_back=sum(kept))
        if config is None:
            return None
        needed_s = self.costs.confirmation_s + self.final_test.takes_s
        # Trials that failed early cost less on the clock than by the model, so the clock may pay for another one.
        if self.account.left_s() < needed_s:
            self.account.allot_what_is_left(self.costs.confirmation_s / 2)
        if self.account.left_s() < needed_s and not self._may_yet_be_confirmed(needed_s):
            return None
        whose = "baseline" if config == self.baseline.config else "finalist"
        trial = self._start(Start(config=config, origin=f"the {whose} under a fresh seed", role="confirmation"))
        return trial, trial.total_steps

    def _may_yet_be_confirmed(self, needed_s: float) -> bool:
        """Whether the first fresh seed may still finish although a slow segment used up a part of its reserve.

        This goes by the pace of all segments rather than by the slowest one: nothing else would use the time, and a run
        that does not finish by then is cut off.
        """
        if self.history.confirmations:
            return False
        return self.ledger.fits(_NEARLY * needed_s * self.account.paces.correction)

    # One trial

    def _begun(self, suggestion: Start | Resume) -> Trial:
        if isinstance(suggestion, Resume):
            return self.history.trials[suggestion.trial]
        return self._start(suggestion)

    def _start(self, start: Start) -> Trial:
        number = len(self.history.trials)
        trial = Trial(
            number=number,
            config=start.config,
            # Seeds differ between the trials of a run, and between the same trial of runs with neighbouring seeds.
            seed=(self.settings.seed * 10_007 + number) % 2**31,
            total_steps=self.costs.total_steps(start.config.plan),
            role=start.role,
            origin=start.origin,
        )
        return self._update(trial)

    def _train(self, trial: Trial, until_step: int) -> None:
        """Have a trial trained to a step."""
        trial = self._update(replace(trial, state="running"))
        self.checkpoints.expect(trial.number)
        self._submit(trial, SegmentInFlight(until_step=until_step, modelled_s=self.costs.segment_s(trial, until_step)))

    def _submit(self, trial: Trial, in_flight: SegmentInFlight) -> None:
        predicted_s = in_flight.modelled_s * self.account.paces.correction
        left_s = max(0.0, self.ledger.available_s - self.final_test.takes_s * self.account.paces.correction)
        # A segment that takes too long is cut off where the reserve begins: a result from then on could not be
        # confirmed.
        slowest = _ROOM * self.account.paces.slowest_correction
        to_leave_s = min(
            slowest * self.reserve.after_s(trial, self.history), max(0.0, left_s - slowest * in_flight.modelled_s)
        )
        left_s -= to_leave_s
        hang_s = max(HANG_FACTOR * predicted_s, HANG_LEAST_S)
        self.account.begin(trial.number, replace(in_flight, is_cut_short=left_s < hang_s))
        segment = TrainSegment(
            trial=trial.number,
            config=trial.config,
            seed=trial.seed,
            start_step=trial.steps_done,
            until_step=in_flight.until_step,
            total_steps=trial.total_steps,
            eval_batch_size=self.eval_batch_size,
            until_s=self.costs.steps_s(trial.config.plan, in_flight.until_step),
            limit_s=min(left_s, hang_s),
            may_give_up=trial.is_challenger,
            fresh=trial.outcome == "oom",  # a first out-of-memory is checked in a fresh process
        )
        self._emit("segment started", trial, predicted_s)
        self.crew.submit(segment)

    def _try_again(self, trial: Trial) -> None:
        """Train a segment again if its worker died or hung or memory may have been full, but not if time ran out."""
        in_flight = self.account.under_way[trial.number]
        if self._fits(in_flight.modelled_s + self.reserve.after_s(trial, self.history)):
            self._submit(trial, in_flight)
        else:
            del self.account.under_way[trial.number]
            self._stop(trial)

    def _stop(self, trial: Trial) -> None:
        """Stop a trial because the time is over. The baseline always stays paused, for a run with more time."""
        self._update(replace(trial, state="paused" if trial.scores or trial.role == "baseline" else "dropped"))

    def _take_result(self) -> None:
        """Wait for the segment that ends first, and act on its result."""
        at_once = len(self.account.under_way)
        is_confirmation = all(self.history.trials[number].role == "confirmation" for number in self.account.under_way)
        kind = "confirmation" if is_confirmation else "training"
        with self.ledger.charge(kind):
            segment, done = self.crew.next()
        in_flight, trial = self.account.under_way[segment.trial], self.history.trials[segment.trial]
        if isinstance(done.exception(), DeviceError) and self.crew.size:
            self.again.append(trial.number)  # a lost device is not an attempt: another worker takes it
            return
        result = outcome(segment, done, trial.role)
        # Several segments share the time that passed. This one is charged its part.
        self.ledger.transfer(kind, "evaluation", result.eval_s / at_once)
        for what, seconds in result.beside_s.items():
            self.ledger.transfer(kind, what, seconds / at_once)
        known_s = result.train_s + result.eval_s + sum(result.beside_s.values())
        self.ledger.transfer(kind, "checkpoints", (result.seconds - known_s) / at_once)
        self.account.spent_s += in_flight.modelled_s
        trial = replace(
            trial,
            seconds=trial.seconds + result.seconds,
            predicted_s=trial.predicted_s + in_flight.modelled_s,
            outcome=result.outcome,
            message=result.message,
        )
        is_time_up = not self._fits(in_flight.modelled_s + self.reserve.after_s(trial, self.history))
        ran_out = result.outcome == "timeout" and in_flight.is_cut_short and is_time_up
        if in_flight.attempt < attempts(result, trial.role) and not ran_out:
            self.history = self.history.updated(trial)  # the record keeps it in flight
            self.account.under_way[trial.number] = replace(in_flight, attempt=in_flight.attempt + 1)
            self.again.append(trial.number)
            return
        del self.account.under_way[trial.number]
        if ran_out:  # the end of the time says nothing about a trial
            self._stop(trial)
        else:
            self._end_segment(trial, in_flight, result)
        self._emit("segment finished", self.history.trials[trial.number])
        self._tidy()

    def _end_segment(self, trial: Trial, in_flight: SegmentInFlight, result: SegmentResult) -> None:
        """Record the result of a segment, and what it says about time and memory."""
        state, scores = trial.state, trial.scores
        if result.score is None:
            state = "failed"
        else:
            self.account.learn(trial, in_flight, result, self.baseline.config.plan.batch_size)
            state = "complete" if in_flight.until_step == trial.total_steps else "paused"
            scores = (*scores, (in_flight.until_step, result.score))
        norms = trial.grad_norms if result.grad_norms is None else (*trial.grad_norms, result.grad_norms)
        if result.outcome == "oom":
            self._remember_what_did_not_fit(trial.config.plan)
        self._update(replace(trial, state=state, scores=scores, grad_norms=norms))

    def _remember_what_did_not_fit(self, plan: Plan) -> None:
        self.limits.lower_below(plan)
        self.notes.append(
            f"batch size {plan.batch_size} ran out of memory in training; only smaller ones were tried from then on"
        )

    def _tidy(self) -> None:
        """Drop the worst paused trials if there are too many, and delete the checkpoints that nothing needs."""
        waiting = [t for t in paused_best_first(self.history) if t.role != "baseline"]  # it always goes on
        for worst in waiting[self.settings.most_paused :]:
            self._update(replace(worst, state="dropped"))
        self.checkpoints.tidy(self.history, is_over=self.is_over)

    def _update(self, trial: Trial) -> Trial:
        self.history = self.history.updated(trial)
        if self.record is not None:
            self.count += 1
            with self.ledger.charge("record"):
                self.record.save(trial, self._state())
        return trial

    def _emit(self, kind: EventKind, trial: Trial | None, predicted_s: float = 0.0) -> None:
        if self.on_event is not None:
            standing = standing_of(self.history)
            elapsed_s = self.ledger.elapsed_s
            self.on_event(
                Event(kind=kind, trial=trial, elapsed_s=elapsed_s, predicted_s=predicted_s, standing=standing)
            )

    # Time

    def _fits(self, modelled_s: float) -> bool:
        """Whether the clock pays for a segment, and for the test after it."""
        return self.account.fits(modelled_s + self.final_test.takes_s)

    def _next_until(self, trial: Trial) -> int:
        return self.costs.ladder.until(len(trial.scores), trial.total_steps)
