"""Where training diverges, and that a finalist is not chosen from there by luck."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.plan import Config, Plan
from autobatch.core.segment import GradNorms, SegmentOutcome
from autobatch.searching.trials import Trial
from autobatch.searching.verdict.confirmation import judge, leads_clearly
from autobatch.searching.verdict.stability import SAFE_RISK, divergence_risk, norms_out_of_line

from ...helpers.histories import history
from .test_confirmation import trial


def config(lr: float, batch: int = 64) -> Config:
    return Config(plan=Plan(batch_size=batch), lr=lr)


OTHERS: tuple[SegmentOutcome, ...] = ("oom", "crashed", "timeout")
RATES = st.floats(1e-5, 1.0)
TRIALS = st.lists(
    st.builds(
        trial,
        st.just(0),
        st.builds(config, RATES, st.sampled_from([16, 64, 256])),
        st.just("search"),
        st.none() | st.just(0.5),
    ),
    max_size=12,
)


@given(at=RATES, trials=TRIALS)
def test_the_risk_is_a_chance_and_nil_where_nothing_diverged(at: float, trials: list[Trial]) -> None:
    risk = divergence_risk(config(at), history(trials))
    assert 0 <= risk < 1
    assert (risk > 0) == any(one.outcome == "diverged" for one in trials)


@given(lr=RATES, ratio=st.floats(1.0, 100.0), trials=TRIALS)
def test_a_higher_rate_is_at_least_as_risky(lr: float, ratio: float, trials: list[Trial]) -> None:
    assert divergence_risk(config(lr * ratio), history(trials)) >= divergence_risk(config(lr), history(trials)) - 1e-9


@given(at=RATES, trials=TRIALS)
def test_a_survival_lowers_the_risk_and_a_divergence_raises_it(at: float, trials: list[Trial]) -> None:
    risk = divergence_risk(config(at), history(trials))
    assert divergence_risk(config(at), history([*trials, trial(1, config(at), "search", 0.5)])) <= risk
    assert divergence_risk(config(at), history([*trials, trial(1, config(at), "search", None)])) > risk


def test_only_divergence_is_held_against_a_neighbourhood() -> None:
    trials = [trial(0, config(0.1), "search", None, outcome=outcome) for outcome in OTHERS]
    assert divergence_risk(config(0.1), history(trials)) == 0


def race(edge: float, safe: float) -> list[Trial]:
    """A baseline at 0.1, a safe rate, and one four times as high beside which two trials diverged."""
    return [
        trial(0, config(0.001), "baseline", 0.1),
        trial(1, config(0.01), "search", safe),
        trial(2, config(0.04), "search", edge),
        trial(3, config(0.05), "search", None),
        trial(4, config(0.08), "search", None),
        trial(5, config(0.009), "search", safe - 0.05),
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_scores_a_little_higher_at_the_edge_of_stability_is_passed_over(sign: int) -> None:
    trials = [
        trial(t.number, t.config, t.role, None if t.final_score is None else sign * t.final_score)
        for t in race(0.82, 0.80)
    ]
    verdict = judge(history(trials, "maximize" if sign > 0 else "minimize"))
    assert verdict.finalist == config(0.01)
    assert verdict.passed_over == (config(0.04),)


def test_what_scores_far_higher_there_is_still_tried() -> None:
    verdict = judge(history(race(0.82, 0.2)))
    assert verdict.finalist == config(0.04)
    assert verdict.passed_over == ()


def test_the_best_score_wins_where_nothing_diverged() -> None:
    trials = [t for t in race(0.82, 0.80) if t.state != "failed"]
    assert judge(history(trials)).finalist == config(0.04)


def test_no_lead_is_clear_beside_a_trial_that_diverged() -> None:
    trials = [*race(0.82, 0.815), trial(6, config(0.011), "search", 0.81)]
    safe = [t for t in trials if t.state != "failed"]
    assert leads_clearly(history(safe))
    at_the_edge = [t for t in trials if t.final_score is None or t.final_score in (0.1, 0.82)]
    assert divergence_risk(config(0.04), history(at_the_edge)) > SAFE_RISK
    assert not leads_clearly(
        history([*at_the_edge, trial(6, config(0.039), "search", 0.819), trial(7, config(0.041), "search", 0.818)])
    )


# The norms of the gradient


def with_norms(*segments: GradNorms) -> list[Trial]:
    """A trial with these rungs, and another configuration whose norms are wild."""
    wild = GradNorms(median=1.0, largest=1e6, clipped=1.0)
    return [
        replace(trial(0, config(0.01), "search", 0.8), grad_norms=segments),
        replace(trial(1, config(0.04), "search", 0.7), grad_norms=(wild, wild)),
    ]


def test_norms_in_line_or_unknown_say_nothing() -> None:
    calm, start = GradNorms(median=1.0, largest=9.0), GradNorms(median=1.0, largest=500.0)
    assert norms_out_of_line(config(0.01), history(with_norms(start, calm, calm))) is None
    assert norms_out_of_line(config(0.01), history(with_norms())) is None
    assert norms_out_of_line(config(0.01), history(with_norms(start))) is None
    assert norms_out_of_line(config(0.02), history(with_norms(calm, start))) is None
    still = GradNorms(median=0.0, largest=0.0)
    assert norms_out_of_line(config(0.01), history(with_norms(still, still))) is None


def test_a_norm_far_above_its_median_and_a_clip_that_sets_the_length_are_said() -> None:
    calm = GradNorms(median=0.5, largest=1.0)
    said = norms_out_of_line(config(0.01), history(with_norms(calm, calm, GradNorms(median=0.5, largest=17.0))))
    assert said == (
        "the gradient norm of the recommended configuration reached 17 where its median was 0.5: clip_grad_norm would "
        "bound such a step"
    )
    clipped = [GradNorms(median=2.0, largest=90.0, clipped=share) for share in (0.0, 0.9, 0.7)]
    said = norms_out_of_line(config(0.01), history(with_norms(*clipped)))
    assert said is not None
    assert said.startswith("clip_grad_norm shortened 80% of the steps")
    assert norms_out_of_line(config(0.01), history(with_norms(*clipped[::-1][:2], clipped[0]))) is None


@given(
    trials=st.lists(
        st.builds(
            trial,
            st.just(0),
            st.builds(config, RATES, st.just(64)),
            st.just("search"),
            st.none() | st.floats(0.2, 0.9),
        ),
        max_size=10,
    ),
    scores=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4),
)
def test_a_finalist_stays_one_whatever_its_fresh_seeds_score(trials: list[Trial], scores: list[float]) -> None:
    """Each of its runs lowers the risk around it, which must not let another pass that was run under no fresh seed."""
    raced = [replace(one, number=number + 1) for number, one in enumerate(trials)]
    raced.insert(0, trial(0, config(0.001), "baseline", 0.1))
    finalist = judge(history(raced)).finalist
    if finalist is None:
        return
    for score in scores:
        raced.append(trial(len(raced), finalist, "confirmation", score))
        assert judge(history(raced)).finalist == finalist
    raced.append(trial(len(raced), finalist, "confirmation", None))
    assert judge(history(raced)).finalist != finalist


def test_the_edge_does_not_pass_a_finalist_that_holds_under_fresh_seeds() -> None:
    """At what the edge scores here, it would: the finalist's two fresh runs lower the risk beside it by enough."""
    before = next(
        trials
        for step in range(4000)
        if judge(history(trials := race(edge=0.9 + step / 1000, safe=0.9))).finalist == config(0.01)
        and judge(history(race(edge=0.9 + (step + 1) / 1000, safe=0.9))).finalist == config(0.04)
    )
    raced = [*before, *(trial(10 + seed, config(0.01), "confirmation", 0.9) for seed in range(2))]
    assert divergence_risk(config(0.04), history(raced)) < divergence_risk(config(0.04), history(before))
    assert judge(history(raced)).finalist == config(0.01)
