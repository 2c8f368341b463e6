"""What every `Runner` keeps to. Subclass `RunnerContract` in a test file and give it the fixture `runner`; where task
files are run, `RangeTestContract` and the fixture `opened` too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autobatch.core.lr_sweep import blew_up
from autobatch.core.plan import Config, Plan
from autobatch.core.runner import Runner
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.errors import CheckpointError


class RunnerContract:
    """The clauses; the hooks below say what differs between runners."""

    resumes_exactly = True  # a segment resumed from its checkpoint scores what one straight through scores
    resumes = True  # there are checkpoints, so that a trial can go on
    tells_losses = True  # of single steps, as a range test needs them

    @pytest.fixture
    def runner(self) -> Runner:
        raise NotImplementedError("the subclass gives the runner, and closes it")

    def small_config(self) -> Config:
        """A configuration that trains quickly and does not diverge."""
        return Config(plan=Plan(batch_size=8), lr=1e-3)

    def huge_plan(self) -> Plan | None:
        """A plan that must not fit; None where nothing is too large."""
        return Plan(batch_size=1 << 24)

    def segment(self, **changes: object) -> TrainSegment:
        """A first segment of eight steps, half of its schedule, with `changes`."""
        segment = TrainSegment(
            trial=0,
            config=self.small_config(),
            seed=0,
            start_step=0,
            until_step=8,
            total_steps=16,
            eval_batch_size=8,
        )
        return replace(segment, **changes)  # type: ignore[arg-type]  # the dataclass itself rejects a wrong name

    def test_facts_device_and_memory_do_not_change(self, runner: Runner) -> None:
        before = runner.facts(), runner.memory()
        runner.probe(self.small_config().plan)
        assert (runner.facts(), runner.memory()) == before
        assert runner.device().name == runner.device().name

    def test_the_budget_is_never_above_the_capacity(self, runner: Runner) -> None:
        limit = runner.memory()
        assert 0 < limit.budget_bytes <= limit.capacity_bytes
        assert limit.source

    @pytest.mark.parametrize("final", [False, True])
    def test_a_small_plan_is_probed_and_tells_what_was_run(self, runner: Runner, final: bool) -> None:
        plan = self.small_config().plan
        probe = runner.probe(plan, final=final)
        assert (probe.outcome, probe.plan) == ("ok", plan)
        assert probe.seconds > 0
        assert probe.peak_bytes is None or 0 <= probe.peak_bytes <= runner.memory().budget_bytes

    def test_a_much_larger_batch_does_not_peak_lower(self, runner: Runner) -> None:
        small = self.small_config().plan
        few = runner.probe(small)
        many = runner.probe(replace(small, batch_size=8 * small.batch_size))
        assert (few.peak_bytes is None) == (many.peak_bytes is None)
        if few.peak_bytes is not None and many.peak_bytes is not None:
            assert few.peak_bytes <= many.peak_bytes

    def test_running_out_of_memory_is_an_answer_and_the_runner_lives_on(self, runner: Runner) -> None:
        huge = self.huge_plan()
        if huge is None:
            pytest.skip("nothing is too large for this runner")
        probe = runner.probe(huge)
        assert probe.outcome in ("oom", "over_limit")
        assert probe.plan == huge
        assert runner.probe(self.small_config().plan).outcome == "ok"

    def test_timing_takes_at_least_three_steps_and_costs_time(self, runner: Runner) -> None:
        timed = runner.time(self.small_config().plan, budget_s=0.0)
        assert timed.outcome == "ok"
        assert len(timed.step_s) >= 3
        assert min(timed.step_s) > 0
        assert timed.seconds > 0

    def test_an_evaluation_takes_no_negative_time(self, runner: Runner) -> None:
        assert runner.time_evaluation(8) >= 0

    def test_a_range_test_rises_geometrically_and_pairs_rates_with_losses(self, runner: Runner) -> None:
        self._skip_without_losses(runner)
        plan = self.small_config().plan
        sweep = runner.sweep_lr(plan, lowest=1e-5, highest=1e-1, steps=20, seed=0)
        assert sweep.plan == plan
        assert sweep.lrs[0] == pytest.approx(1e-5)
        assert len(sweep.losses) == len(sweep.lrs) <= 20
        assert sweep.diverged or sweep.lrs[-1] == pytest.approx(1e-1)
        ratios = [after / before for before, after in zip(sweep.lrs, sweep.lrs[1:], strict=False)]
        assert ratios == pytest.approx([1e4 ** (1 / 19)] * len(ratios))

    def test_a_range_test_goes_on_until_the_loss_has_blown_up(self, runner: Runner) -> None:
        self._skip_without_losses(runner)
        sweep = runner.sweep_lr(self.small_config().plan, lowest=1e-5, highest=1e2, steps=50, seed=0)
        assert not any(blew_up(sweep.losses[:steps]) for steps in range(len(sweep.losses)))
        assert sweep.diverged == (len(sweep.losses) < 50 or blew_up(sweep.losses))

    def test_a_segment_scores_and_charges_its_time(self, runner: Runner) -> None:
        result = runner.advance(self.segment())
        assert result.outcome == "ok"
        assert result.score is not None
        assert result.train_s > 0
        assert result.seconds >= result.train_s

    def test_the_same_segment_under_the_same_seed_scores_the_same(self, runner: Runner) -> None:
        assert self._score(runner.advance(self.segment(trial=1))) == self._score(runner.advance(self.segment(trial=2)))

    def test_a_resumed_trial_equals_one_straight_through(self, runner: Runner) -> None:
        if not self.resumes_exactly:
            pytest.skip("this runner does not promise it")
        runner.advance(self.segment(trial=1))
        resumed = runner.advance(self.segment(trial=1, start_step=8, until_step=16))
        straight = runner.advance(self.segment(trial=2, until_step=16))
        assert self._score(resumed) == self._score(straight)

    def test_a_segment_from_the_wrong_step_is_refused(self, runner: Runner) -> None:
        self._skip_without_checkpoints(runner)
        runner.advance(self.segment(trial=1))
        with pytest.raises(CheckpointError):
            runner.advance(self.segment(trial=1, start_step=4, until_step=16))

    def test_a_segment_may_be_run_again_until_its_first_checkpoint_is_forgotten(self, runner: Runner) -> None:
        first = runner.advance(self.segment(trial=1))
        assert self._score(runner.advance(self.segment(trial=1))) == self._score(first)
        second = self.segment(trial=1, start_step=8, until_step=16)
        again = [runner.advance(second) for _ in range(2)]
        if self.resumes_exactly:
            assert self._score(again[0]) == self._score(again[1])
        runner.forget(1, before=16)
        if not self.resumes:
            return
        with pytest.raises(CheckpointError):
            runner.advance(second)
        runner.test_score(second)  # its last one is still there

    def test_a_forgotten_trial_cannot_be_resumed_and_may_start_again(self, runner: Runner) -> None:
        runner.advance(self.segment(trial=1))
        runner.forget(1)
        if self.resumes:
            with pytest.raises(CheckpointError):
                runner.advance(self.segment(trial=1, start_step=8, until_step=16))
        assert runner.advance(self.segment(trial=1)).outcome == "ok"

    def test_forgetting_what_is_not_kept_is_fine(self, runner: Runner) -> None:
        runner.forget(12345)
        assert runner.advance(self.segment()).outcome == "ok"

    def test_a_test_score_is_there_exactly_when_there_is_test_data(self, runner: Runner) -> None:
        segment = self.segment(until_step=16)
        runner.advance(segment)
        assert (runner.test_score(segment) is not None) == runner.facts().has_test_data

    def test_closing_twice_is_fine(self, runner: Runner) -> None:
        facts = runner.facts()
        runner.close()
        runner.close()
        assert facts.name

    def _skip_without_losses(self, runner: Runner) -> None:
        assert ("range test" in runner.facts().without) != self.tells_losses
        if not self.tells_losses:
            pytest.skip("this runner is told no losses, and says so")

    def _skip_without_checkpoints(self, runner: Runner) -> None:
        assert runner.facts().resumes == self.resumes
        if not self.resumes:
            pytest.skip("this runner has no checkpoints, and says so")

    @staticmethod
    def _score(result: SegmentResult) -> float:
        assert result.score is not None, result.message
        return result.score


# A regression of noise on one weight, by plain gradient descent: its loss is that of the noise whatever the rate, up to
# a rate of 1, where the weight's distance from the data begins to grow from step to step.
NOISE_TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

direction = "minimize"
baseline = {"batch_size": 4, "lr": 1e-2}

def model():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model

def data(seed):
    y = torch.randn(4096, 1, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(torch.ones(4096, 1), y)

def train_data():
    return data(0)

def val_data():
    return data(1)

def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr)

LARGEST = float("inf")

def loss(model, batch):
    x, y = batch
    found = (model(x) - y).square().mean()
    return found if found < LARGEST else found * float("nan")

def metric(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()
"""


class RangeTestContract:
    """When the range test of a task file ends, in whatever processes it is run; the subclass opens the runner."""

    plan = Plan(batch_size=4)

    @pytest.fixture
    def opened(self) -> Callable[[str], Runner]:
        raise NotImplementedError("the subclass opens a task file's text, and closes what it opened")

    @pytest.mark.parametrize("seed", [0, 1])
    def test_noise_does_not_end_it(self, opened: Callable[[str], Runner], seed: int) -> None:
        sweep = opened(NOISE_TASK).sweep_lr(self.plan, lowest=1e-7, highest=1e-1, steps=100, seed=seed)
        assert (len(sweep.losses), sweep.diverged, sweep.diverged_step) == (100, False, None)
        assert max(sweep.losses) > 4 * min(sweep.losses)  # it is noise

    def test_a_blow_up_ends_it_within_a_few_steps(self, opened: Callable[[str], Runner]) -> None:
        sweep = opened(NOISE_TASK).sweep_lr(self.plan, lowest=1e-2, highest=1e2, steps=100, seed=0)
        assert sweep.diverged
        assert 0.7 < sweep.lrs[-1] < 5.0
        assert sweep.diverged_step == len(sweep.losses)
        assert [blew_up(sweep.losses[:n]) for n in range(len(sweep.losses) + 1)] == [False] * len(sweep.losses) + [True]

    def test_a_loss_that_is_no_number_ends_it_at_once(self, opened: Callable[[str], Runner]) -> None:
        task = NOISE_TASK.replace('LARGEST = float("inf")', "LARGEST = 8.0")
        sweep = opened(task).sweep_lr(self.plan, lowest=1e-1, highest=1e3, steps=60, seed=0)
        assert sweep.diverged
        assert max(sweep.losses) < 8.0
        assert sweep.diverged_step == len(sweep.losses) + 1
