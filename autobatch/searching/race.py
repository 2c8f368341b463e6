"""A race under way: which trial advances next, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from ..core.plan import Config, Plan
from ..core.runner import Runner
from ..core.segment import HANG_FACTOR, HANG_LEAST_S, Rung, RungResult
from ..core.units import format_duration
from ..errors import BudgetTooShort, CheckpointError, DeviceError, DeviceLost, NoValidResult, TaskError
from .account import Account, Leg
from .advice import enough_s, give_at_least, typed
from .conclusion import SearchResult, conclude
from .confirmation import (
    MOST_SEEDS,
    Verdict,
    is_close,
    judge,
    leads_clearly,
    next_seed_for,
)
from .costs import EQUIVALENTS, Costs
from .crew import Crew
from .halving import paused_best_first, promotable
from .history import History
from .ledger import Ledger
from .limits import MemoryLimits
from .paces import CorrectedTimes
from .proposals import Proposals, runnable
from .race_state import RaceState
from .record import Kept, StudyRecord
from .retention import needed_checkpoints
from .trials import (
    MIN_STEPS,
    Event,
    EventKind,
    Role,
    SearchSettings,
    Trial,
    last_rung,
    optimizer_step_s,
    space_for,
    warm_starts,
)

# Below this many full trials only one is reserved for confirmation. Assumed: else under half is left for the search.
FEW_EQUIVALENTS = 6

# Where the lead is close, two more fresh seeds, one for each side, are kept back for every so many full trials that a
# worker has the time for. Measured with 8, where one more brings nothing, 16 and 32 of them (benchmarks/NOTES.md).
TRIALS_A_PAIR = 12

# Full trials' worth of modelled time after which "auto" goes over from freeze-thaw to TPE with successive halving. What
# the surrogate takes for a decision grows with the cube of the rungs. After 8 and 16 freeze-thaw leaves less than TPE
# on the six tables that it was tuned on, about as much on five others; after 32 neither is ahead (docs/search.md).
# Going over after 8 was better than both on the six, and worse than both on the five (benchmarks/NOTES.md).
THAWS = 32.0

# A rung whose worker died is run again from its checkpoint; after this many deaths in a row never. Assumed.
MOST_ATTEMPTS = 3

# Of what the first fresh seed should take, what must be left for it to be tried. Assumed: paces vary by as much.
_NEARLY = 0.9

# A baseline that hangs is run once more: nothing can be compared without it, and a hang may be the machine's. Assumed.
BASELINE_HANGS = 2


@dataclass(slots=True, kw_only=True)
class Race:
    """A race under way: the trials so far, the time they cost, and the next pieces of work.

    Whoever of the crew is idle gets the next one, decided by what is known then.
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

    history: History = field(init=False)
    proposals: Proposals = field(init=False)
    baseline: Config = field(init=False)
    baseline_origin: str = field(init=False)
    notes: list[str] = field(default_factory=list)
    is_over: bool = False
    test_scores: tuple[float | None, float | None] = (None, None)
    checkpoints: dict[int, int] = field(default_factory=dict)  # the steps of those that are there, by trial
    count: int = 0  # of the changes that were recorded
    began_s: float = 0.0  # by the ledger
    again: list[int] = field(default_factory=list)  # trials of those that wait for a worker after theirs has died
    is_confirming: bool = False

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, in the order of their numbers."""
        return self.history.trials

    @property
    def costs(self) -> Costs:
        """What work costs, as far as is known by now."""
        return self.account.costs

    # Setting out

    def prepare(self, lr_hint: float | None, lr_diverged: float | None, kept: Kept | None = None) -> None:
        """Fix the baseline, the space and the warm starts, and go to where an earlier process was stopped."""
        facts = self.runner.facts()
        self.history = History(direction=facts.direction, ladder=self.costs.ladder)
        whose = "your configuration" if facts.baseline_is_users else "the default configuration (assumed)"
        self.baseline, self.baseline_origin = facts.baseline, f"{whose}, trained to the end"
        own = facts.baseline.plan
        fitting = self.limits.as_trained(own, accumulates=facts.accumulates)
        if fitting != own:
            self.baseline = replace(facts.baseline, plan=fitting)
            where = " beside gradients that are kept" if own.accumulation_steps > 1 else ""
            how = f"accumulated over {fitting.accumulation_steps} steps of {fitting.batch_size}"
            if fitting.accumulation_steps == 1:
                how = f"trained as one batch of {fitting.batch_size}"
            self.baseline_origin += f"; its batch of {own.batch_size} does not fit{where}, so it is {how}"
        earlier, not_here = runnable(self.settings.earlier, self.limits, self.costs)
        self.notes += not_here
        space = space_for(
            facts,
            self.costs.times,
            max_batch=self.limits.max_batch,
            max_micro_batch=self.limits.max_micro_batch,
            horizon_s=self.costs.horizon_s,
            baseline=self.baseline,
            lr_hint=lr_hint,
            lr_diverged=lr_diverged,
            earlier=[config for config, _ in earlier],
        )
        space = replace(space, lrs=self.settings.lrs)
        self.account.allotment_s = self.crew.size * self.ledger.available_s
        self.began_s = self.ledger.elapsed_s
        steps = self.costs.total_steps(self.baseline.plan)
        is_new = kept is None or not kept.trials
        if is_new and (steps < MIN_STEPS or self.costs.full_trial_s > self.ledger.available_s):
            needed_s = enough_s(
                EQUIVALENTS * self.costs.full_trial_s * max(1.0, MIN_STEPS / steps), self.ledger.elapsed_s
            )
            raise BudgetTooShort(
                f"the baseline takes at least {MIN_STEPS} steps in a full trial that fits the budget; it would take "
                f"{steps} in {format_duration(self.costs.full_trial_s)}, and "
                f"{format_duration(self.ledger.available_s)} "
                f"remain. {give_at_least(needed_s)}"
            )
        plan = self.limits.plan_for(space.nearest(space.reference_batch))
        self.proposals = Proposals(
            space=space,
            limits=self.limits,
            settings=self.settings,
            ledger=self.ledger,
            waiting=warm_starts(space, self.baseline, plan, lr_hint, earlier) if plan else earlier,
        )
        if kept is not None and kept.trials:
            self._restore(kept)

    def _restore(self, kept: Kept) -> None:
        state = kept.state
        self.history, self.baseline = replace(self.history, trials=kept.trials), kept.trials[0].config
        self.account.allotment_s, self.account.spent_s = state.allotment_s, state.spent_s
        self.account.paces = state.paces
        self._correct_times()
        self.limits.max_batch, self.limits.max_micro_batch = state.max_batch, state.max_micro_batch
        self.notes, self.count = list(state.notes), state.count
        self.is_over, self.test_scores = state.is_over, state.test_scores
        started = {trial.config for trial in self.trials if trial.role == "warm start"}
        self.proposals.waiting = [start for start in self.proposals.waiting if start[0] not in started]
        self.proposals.keep_what_fits()
        self.proposals.is_exhausted = state.is_exhausted
        if self.record is not None:  # what the last change had no time for: the states that others read
            for trial in self.trials:
                self.record.save(trial, self._state())
        self.checkpoints = {trial.number: -1 for trial in self.trials}  # nobody knows what a kill has left
        self._tidy()

    def _state(self) -> RaceState:
        return RaceState(
            count=self.count,
            allotment_s=self.account.allotment_s,
            spent_s=self.account.spent_s,
            max_batch=self.limits.max_batch,
            max_micro_batch=self.limits.max_micro_batch,
            paces=self.account.paces,
            is_exhausted=self.proposals.is_exhausted,
            notes=tuple(self.notes),
            charged=self.ledger.entries(),
            is_over=self.is_over,
            test_scores=self.test_scores,
        )

    # The race

    def run(self) -> None:
        """Race until nothing more fits, then confirm; from wherever the race stands."""
        if not self.is_over:
            self._race()
        self._tidy()

    def _race(self) -> None:
        if not self.trials:
            self._start(self.baseline, "baseline", self.baseline_origin)
        while True:
            while self.crew.has_idle:
                if self.again:
                    self._try_again(self.trials[self.again.pop(0)])
                elif (leg := self._next_leg()) is not None:
                    self._set_off(*leg)
                else:
                    break
            if not self.account.under_way:
                break
            self._take_in()
        self._test()
        if self.trials[0].state in ("running", "paused") or not any(t.state == "complete" for t in self.trials):
            return  # there is no result, and what there is may go on with more time
        for trial in self.trials:
            if trial.state == "paused":
                self._update(replace(trial, state="dropped"))
        self.is_over = True
        if self.record is not None:
            self.count += 1
            self.record.end(self._state())

    def _next_leg(self) -> tuple[Trial, int] | None:
        """The trial to train next and the step until which; None where nothing fits, or what is under way decides.

        The baseline goes first, then what was in flight when an earlier process of this run was stopped, then the
        search, and when nothing more of that fits, the fresh seeds.
        """
        baseline = self.trials[0]
        if baseline.state in ("running", "paused") and baseline.number not in self.account.under_way:
            until_step = self._next_until(baseline)
            if self._fits(self.costs.rung_s(baseline, until_step)):
                return baseline, until_step
        for trial in self.trials[1:]:
            if trial.state == "running" and trial.number not in self.account.under_way:
                until_step = trial.total_steps if trial.role == "confirmation" else self._next_until(trial)
                if self._fits(self.costs.rung_s(trial, until_step)):
                    return trial, until_step
                self._set_aside(trial)
        # Once fresh seeds have begun they end the race, those that failed too: what these leave of the time is the next
        # best one's, and hardly ever enough for another trial beside the reserve (benchmarks/NOTES.md).
        if not self.is_confirming and not self.history.confirmations:
            action = self._next_action()
            while action is None and self.account.allot_what_is_left():
                action = self._next_action()
            if action is None and self.account.under_way:
                return None  # what it brings may be worth going on with
            if action is not None:
                return action, self._next_until(action)
        if not self.is_confirming:
            self.is_confirming = True
            self._tell("confirming", None)
        return self._next_confirmation()

    def _next_action(self) -> Trial | None:
        """The trial to advance by a rung, new or paused; None when nothing that could be finished fits."""
        left_s = self.account.left_s(*self._kept_back) - self._tests_s
        may_start = left_s >= self.costs.full_trial_s
        if may_start and (known := self.proposals.known(self.history)) is not None:
            config, origin = known
            return self._start(config, "warm start", origin)
        if self._thaws:
            resumable = [t for t in self.trials if t.state == "paused" and self.costs.finish_s(t) <= left_s]
            choice = self.proposals.chosen(self.history, resumable, may_start=may_start)
            return self._start_sampled(choice) if isinstance(choice, Config) else choice
        for trial in promotable(self.history):
            if self.costs.finish_s(trial) <= left_s:
                return trial
        if may_start and (found := self.proposals.sampled(self.history)) is not None:
            return self._start_sampled(found)
        for trial in paused_best_first(self.history):
            if self.costs.finish_s(trial) <= left_s:
                return trial
        return None

    @property
    def _thaws(self) -> bool:
        """Whether freeze-thaw decides, and not a sampler with successive halving."""
        if self.settings.sampler == "auto":
            return self.account.spent_s < THAWS * self.costs.full_trial_s
        return self.settings.sampler == "freeze-thaw"

    def _next_confirmation(self) -> tuple[Trial, int] | None:
        """The finalist, or the baseline where it is close, under a fresh seed; None once no more are needed."""
        kept = self._kept_back
        config = next_seed_for(self.history, kept[0], kept_back=sum(kept))
        if config is None:
            return None
        needed_s = self.costs.confirmation_s + self._tests_s
        # What failed early cost the clock less than the model, which pays for another in its place.
        if self.account.left_s() < needed_s:
            self.account.allot_what_is_left(self.costs.confirmation_s / 2)
        if self.account.left_s() < needed_s and not self._may_yet_be_confirmed(needed_s):
            return None
        whose = "baseline" if config == self.baseline else "finalist"
        trial = self._start(config, "confirmation", f"the {whose} under a fresh seed")
        return trial, trial.total_steps

    def _may_yet_be_confirmed(self, needed_s: float) -> bool:
        """Whether the first fresh seed may come to its end though a rung that took longer has used up of its reserve.

        By the pace of all rungs rather than that of the slowest: nothing else would use the time, and what does not
        come to its end by then is cut.
        """
        if self.history.confirmations:
            return False
        return self.ledger.fits(_NEARLY * needed_s * self.account.paces.correction)

    def _test(self) -> None:
        """Score the winner and the baseline once on data that no choice was made by."""
        if not self.runner.facts().has_test_data:
            return
        verdict = self._verdict()
        runs = [next((t for t in self.trials if t.role == "baseline" and t.state == "complete"), None)]
        if verdict.finalist_wins:
            fresh = (t for t in self.trials if t.role == "confirmation" and t.config == verdict.finalist)
            runs.insert(0, next((t for t in fresh if t.state == "complete"), None))
        scores = [self._test_score(trial) for trial in runs]
        self.test_scores = scores[0], scores[-1]

    @property
    def _tests_s(self) -> float:
        """Modelled seconds of the test of the winner and of the baseline, which no trial may use up."""
        return 2 * self.costs.eval_s if self.runner.facts().has_test_data else 0.0

    def _test_score(self, trial: Trial | None) -> float | None:
        # The test data is taken to be no longer to evaluate than the validation data.
        if trial is None or not self.account.fits(self.costs.eval_s):
            return None
        with self.ledger.charge("evaluation"):
            try:
                return self.runner.test_score(last_rung(trial, self.eval_batch_size))
            except (TaskError, CheckpointError) as error:  # what was found stands without it
                self.notes.append(f"there is no score on the test data: {error}")
                return None

    # One trial

    def _start(self, config: Config, role: Role, origin: str) -> Trial:
        number = len(self.trials)
        trial = Trial(
            number=number,
            config=config,
            # Distinct for every trial, and for the same trial of runs with neighbouring seeds.
            seed=(self.settings.seed * 10_007 + number) % 2**31,
            total_steps=self.costs.total_steps(config.plan),
            role=role,
            origin=origin,
        )
        return self._update(trial)

    def _start_sampled(self, config: Config) -> Trial:
        return self._start(config, "search", f"proposed after {len(self.trials)} trials")

    def _set_off(self, trial: Trial, until_step: int) -> None:
        """Have one rung trained."""
        trial = self._update(replace(trial, state="running"))
        self.checkpoints.setdefault(trial.number, 0)
        self._submit(trial, Leg(until_step=until_step, modelled_s=self.costs.rung_s(trial, until_step)))

    def _submit(self, trial: Trial, leg: Leg) -> None:
        predicted_s = leg.modelled_s * self.account.paces.correction
        left_s = max(0.0, self.ledger.available_s - self._tests_s * self.account.paces.correction)
        hang_s = max(HANG_FACTOR * predicted_s, HANG_LEAST_S)
        self.account.begin(trial.number, replace(leg, is_cut_short=left_s < hang_s))
        rung = Rung(
            trial=trial.number,
            config=trial.config,
            seed=trial.seed,
            start_step=trial.steps_done,
            until_step=leg.until_step,
            total_steps=trial.total_steps,
            eval_batch_size=self.eval_batch_size,
            limit_s=min(left_s, hang_s),
            may_give_up=trial.role in ("search", "warm start"),
            fresh=trial.outcome == "oom",  # it was not believed yet
        )
        self._tell("rung started", trial, predicted_s)
        self.crew.submit(rung)

    def _try_again(self, trial: Trial) -> None:
        """Have a rung trained anew whose worker died, hung or may have been full; want of time is not its fault."""
        leg = self.account.under_way[trial.number]
        if self._fits(leg.modelled_s):
            self._submit(trial, leg)
        else:
            del self.account.under_way[trial.number]
            self._set_aside(trial)

    def _set_aside(self, trial: Trial) -> None:
        """Leave a trial where it is for want of time; the baseline, which has no other place, until there is more."""
        self._update(replace(trial, state="paused" if trial.scores or trial.role == "baseline" else "dropped"))

    def _take_in(self) -> None:
        """Wait for the rung that ends first, and draw the consequences."""
        at_once = len(self.account.under_way)
        is_confirmation = all(self.trials[number].role == "confirmation" for number in self.account.under_way)
        kind = "confirmation" if is_confirmation else "training"
        with self.ledger.charge(kind):
            rung, done = self.crew.next()
        leg, trial = self.account.under_way[rung.trial], self.trials[rung.trial]
        if isinstance(done.exception(), DeviceError) and self.crew.size:
            self.again.append(trial.number)  # it counts as no attempt: others are there
            return
        result = _outcome(rung, done, trial.role)
        # Of the time that passed, a rung among several has had its share.
        self.ledger.transfer(kind, "evaluation", result.eval_s / at_once)
        self.ledger.transfer(kind, "checkpoints", (result.seconds - result.train_s - result.eval_s) / at_once)
        self.account.spent_s += leg.modelled_s
        trial = replace(
            trial,
            seconds=trial.seconds + result.seconds,
            predicted_s=trial.predicted_s + leg.modelled_s,
            outcome=result.outcome,
            message=result.message,
        )
        ran_out = result.outcome == "timeout" and leg.is_cut_short and not self._fits(leg.modelled_s)
        if leg.attempt < _attempts(result, trial.role) and not ran_out:
            self.history = self.history.updated(trial)  # in the record it is in flight
            self.account.under_way[trial.number] = replace(leg, attempt=leg.attempt + 1)
            self.again.append(trial.number)
            return
        del self.account.under_way[trial.number]
        if ran_out:  # the end of the time says nothing of a trial
            self._set_aside(trial)
        else:
            self._end_rung(trial, leg, result)
        self._tell("rung finished", self.trials[trial.number])
        self._tidy()

    def _end_rung(self, trial: Trial, leg: Leg, result: RungResult) -> None:
        """Take down what a rung came to, and what it says of the time and of the memory."""
        state, scores = trial.state, trial.scores
        if result.score is None:
            state = "failed"
        else:
            # A process warms up in its first rung: that of the very first counts for a while, those of others never.
            if self.account.paces.first is None or not result.is_first:
                self.account.paces = self.account.paces.with_rung(leg.modelled_s, result.seconds)
            if not result.is_first:
                profiled_s = (leg.until_step - trial.steps_done) * optimizer_step_s(
                    trial.config.plan, self.limits.times
                )
                batch_size = trial.config.plan.batch_size
                self.account.paces = self.account.paces.with_steps(batch_size, profiled_s, result.train_s)
                self._correct_times()
            state = "complete" if leg.until_step == trial.total_steps else "paused"
            scores = (*scores, (leg.until_step, result.score))
        norms = trial.grad_norms if result.grad_norms is None else (*trial.grad_norms, result.grad_norms)
        if result.outcome == "oom":
            self._remember_what_did_not_fit(trial.config.plan)
        self._update(replace(trial, state=state, scores=scores, grad_norms=norms))

    def _correct_times(self) -> None:
        """Give the batch sizes that the profile is wrong about their own time in trials to come.

        Else a trial at such a size would be compared after more training than others, or less. A trial that has begun
        keeps its steps: its schedule was drawn over them.
        """
        times = CorrectedTimes(self.limits.times, self._off_by)
        self.account.costs = replace(self.costs, times=times)

    def _remember_what_did_not_fit(self, plan: Plan) -> None:
        self.limits.lower_below(plan)
        self.proposals.keep_what_fits()
        self.notes.append(
            f"batch size {plan.batch_size} ran out of memory in training; only smaller ones were tried from then on"
        )

    def _tidy(self) -> None:
        """Drop the worst of too many that wait, and delete the checkpoints that nothing will need.

        After the result is in the record: until then the rung may have to be run again.
        """
        waiting = [t for t in paused_best_first(self.history) if t.role != "baseline"]  # it goes on
        for worst in waiting[self.settings.most_paused :]:
            self._update(replace(worst, state="dropped"))
        needed = needed_checkpoints(
            self.history,
            keep=self.settings.keep_checkpoints,
            tests=self.runner.facts().has_test_data,
            is_over=self.is_over,
        )
        for number in self.checkpoints.keys() - needed.keys():
            self.runner.forget(number)
        for number, step in needed.items():
            if step != self.checkpoints.get(number):
                self.runner.forget(number, before=step)
        self.checkpoints = needed

    def _update(self, trial: Trial) -> Trial:
        self.history = self.history.updated(trial)
        if self.record is not None:
            self.count += 1
            with self.ledger.charge("record"):
                self.record.save(trial, self._state())
        return trial

    def _tell(self, kind: EventKind, trial: Trial | None, predicted_s: float = 0.0) -> None:
        if self.on_event is not None:
            self.on_event(Event(kind=kind, trial=trial, elapsed_s=self.ledger.elapsed_s, predicted_s=predicted_s))

    # Time

    def _fits(self, modelled_s: float) -> bool:
        """Whether the clock pays for a rung, and for the test after it."""
        return self.account.fits(modelled_s + self._tests_s)

    @property
    def confirmations(self) -> int:
        """Full trials reserved for fresh seeds: one where the time is short, or the lead is beyond doubt.

        Not with several workers, which train them at once: a second one takes no longer.
        """
        if self.crew.size > 1:
            return self.settings.confirmations
        few = self.account.equivalents < FEW_EQUIVALENTS or leads_clearly(self.history)
        return 1 if few else self.settings.confirmations

    @property
    def _kept_back(self) -> tuple[int, ...]:
        """Full trials kept back for fresh seeds, by rounds: the finalist's; where the lead is close, more for both."""
        first = self.confirmations
        if not is_close(self.history):
            return (first,)
        pairs = int(self.account.equivalents / max(1, self.crew.size) / TRIALS_A_PAIR)
        return first, min(MOST_SEEDS, 2 * pairs)

    def _next_until(self, trial: Trial) -> int:
        return self.costs.ladder.until(len(trial.scores), trial.total_steps)

    # The end

    def _verdict(self) -> Verdict:
        return judge(self.history)

    def interrupted(self, why: str = "stopped by the user before the end") -> SearchResult:
        """The baseline, unless it failed or all the reserved seeds had spoken when the race was stopped.

        What is under way is not waited for: whoever closes the runners ends it.
        """
        for trial in self.trials:
            if trial.state == "running":  # not in the record: there it is in flight, to be taken up
                stopped = replace(trial, message="interrupted")
                stopped = replace(stopped, state="paused" if trial.scores else "dropped")
                self.history = self.history.updated(stopped)
        fresh = self._verdict().finalist_score
        spoken = fresh is not None and len(fresh.scores) >= self.confirmations
        return self._result(interrupted=why, may_win=spoken)

    def without_device(self, lost: DeviceError) -> SearchResult:
        """The same, where nothing is left to train on.

        Raises:
            DeviceLost: nothing was trained to the end.
        """
        if not any(trial.state == "complete" for trial in self.trials):
            raise DeviceLost(f"no device was left to train on before anything was trained to the end: {lost}")
        ended = self.interrupted(f"ended early, as no device was left to train on: {lost}")
        return replace(ended, lost_device=True)

    def result(self) -> SearchResult:
        """The outcome of a race that ran to its end.

        Raises:
            NoValidResult: there is nothing to compare with, or nothing that ran at all.
        """
        taking_s = self.costs.full_trial_s * self.account.paces.correction
        baseline = self.trials[0]
        if baseline.state in ("running", "paused"):
            pace = self.account.paces.correction
            raise NoValidResult(
                f"the time ran out at step {baseline.steps_done} of {baseline.total_steps} of the baseline: training "
                f"takes {pace:.1f} times what the profile said. {self._remedy_for_slow_steps()}"
            )
        if not any(trial.state == "complete" for trial in self.trials):
            said = sorted({f"{t.outcome}: {t.message or 'no message'}" for t in self.trials if t.state == "failed"})
            raise NoValidResult(
                f"a race needs a trial that is trained to the end; {len(self.trials)} were started and none was"
                + (f" ({'; '.join(said)})" if said else "")
                + f". A full one takes {format_duration(taking_s)}: mend the task, or give more time"
            )
        return self._result(interrupted=None, may_win=True)

    def _remedy_for_slow_steps(self) -> str:
        """What lets the baseline come to its end, where training is so much slower than the profile."""
        pace, full_s = self.account.paces.correction, self.costs.full_trial_s
        if 2 * pace < EQUIVALENTS:
            return give_at_least(enough_s(EQUIVALENTS * pace * full_s, self.began_s), "a budget of ")
        # A trial is a share of the budget by the profile, and so it is too long in any budget.
        why = "With any budget it would: a trial is as long as the profile lets it be. See what slows training down"
        left_s = self.ledger.budget_s - self.began_s
        train_time_s = (left_s / (2 * pace) - (full_s - self.costs.horizon_s)) / 2
        if train_time_s < MIN_STEPS * optimizer_step_s(self.baseline.plan, self.costs.times):
            return why
        return f"{why}, or give a training time of at most {typed(train_time_s)}"

    @property
    def _off_by(self) -> dict[int, float]:
        """What the profile is wrong about; T is what the baseline's own size takes."""
        return self.account.paces.off_by(self.baseline.plan.batch_size)

    def _corrections(self) -> list[str]:
        """What the profile was wrong about."""
        return [
            f"a step at batch size {batch} took {off:.2f} times what the profile gave for it beside the baseline's: "
            f"trials begun after this was seen had {'fewer' if off > 1 else 'more'} steps, for the same time"
            for batch, off in self._off_by.items()
        ]

    def _result(self, *, interrupted: str | None, may_win: bool) -> SearchResult:
        return conclude(
            self.history,
            self._verdict(),
            baseline=self.baseline,
            space=self.proposals.space,
            horizon_s=self.costs.horizon_s,
            equivalents=self.account.equivalents,
            may_win=may_win,
            interrupted=interrupted,
            notes=[*self.notes, *self._corrections(), *self.crew.remarks],
            test_scores=self.test_scores,
        )


def _attempts(result: RungResult, role: Role) -> int:
    """How often a rung is trained that comes to this."""
    if result.outcome == "timeout" and role == "baseline":
        return BASELINE_HANGS
    if result.outcome == "oom" and not (result.fresh or result.rung.fresh):
        return MOST_ATTEMPTS + 1  # what its process kept of other work may have taken the room: once more, without that
    return MOST_ATTEMPTS if result.outcome == "crashed" else 1


def _outcome(rung: Rung, done: Future[RungResult], role: Role) -> RungResult:
    """What came of a rung, where what was raised says something of its trial alone."""
    try:
        return done.result()
    except CheckpointError as error:
        return RungResult(rung=rung, outcome="crashed", message=str(error))
    except TaskError as error:
        if role == "baseline":
            raise
        # The task trains with the user's settings, and gives up with these: many do when the loss blows up.
        return RungResult(rung=rung, outcome="raised", message=str(error))
