"""What a race comes to, in words that agree with its figures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from autobatch.searching.space import Space
from autobatch.searching.trials import Trial
from autobatch.searching.verdict.conclusion import SearchResult, conclude
from autobatch.searching.verdict.confirmation import PROVEN_AGAIN, judge

from ...helpers.histories import history
from .test_confirmation import config, confirmed, searched, trial


def concluded(trials: Sequence[Trial], *, may_win: bool = True) -> SearchResult:
    space = Space(effective_batch_sizes=(16, 32), lr_low=1e-4, lr_high=1.0, reference_batch=32)
    return conclude(
        history(trials),
        judge(history(trials)),
        baseline=config(0),
        space=space,
        horizon_s=60.0,
        equivalents=16.0,
        may_win=may_win,
    )


def sentence(result: SearchResult) -> str:
    """The one that says how the comparison ended."""
    (found,) = (reason for reason in result.why if reason.startswith("on fresh seeds "))
    return found


CLEAR = confirmed(searched(0.80, 0.90, 0.89, 0.88), config(1), 0.86, 0.85)
WEAK = confirmed(searched(0.82, 0.90, 0.89, 0.88), config(1), 0.86, 0.85)


def test_a_winner_beyond_luck_is_said_to_beat_the_baseline() -> None:
    result = concluded(CLEAR)
    assert not result.chose_baseline
    assert result.is_proven
    assert result.probability is not None
    assert result.probability >= PROVEN_AGAIN
    assert "beat the baseline by 0.055, standard error" in sentence(result)
    assert sentence(result).endswith(": it is chosen")


def test_a_weaker_lead_is_called_that_with_its_probability() -> None:
    result = concluded(WEAK)
    assert not result.chose_baseline
    assert not result.is_proven
    assert result.probability == pytest.approx(0.9089, abs=0.0001)
    assert "was ahead of the baseline by 0.035, standard error" in sentence(result)
    assert sentence(result).endswith(
        ", which is not proven: it is better with a probability of 90%, "
        'and "beat" takes 95%; it is chosen as being as good'
    )


def test_a_lead_of_four_standard_errors_is_not_proven_where_these_rest_on_little() -> None:
    """Two settings that are the same training: three scores that happen to be close make any lead look large."""
    result = concluded(confirmed(searched(0.9000, 0.9013, 0.9010, 0.9008), config(1), 0.9014))
    assert result.score is not None
    assert result.score.stderr is not None
    found = judge(history(result.trials))
    assert found.difference is not None
    assert found.stderr is not None
    assert found.difference > 4 * found.stderr
    assert not result.is_proven
    assert "beat the baseline" not in " ".join(result.why)


def test_a_lead_that_was_cut_short_is_never_proven() -> None:
    assert not concluded(CLEAR[:-1], may_win=False).is_proven


def test_a_lead_that_was_cut_short_is_not_said_to_be_too_small() -> None:
    result = concluded(CLEAR[:-1], may_win=False)
    assert result.chose_baseline
    assert "was ahead of the baseline by 0.06" in sentence(result)
    assert sentence(result).endswith("when the run ended before all reserved seeds had spoken: the baseline stays")
    assert "not enough" not in sentence(result)


@pytest.mark.parametrize(
    ("fresh", "said"),
    [
        (0.805, "was ahead of the baseline by 0.005, standard error 0.0XX: not enough, the baseline stays"),
        (0.800, "scored as much as the baseline, standard error 0.0XX: the baseline stays"),
        (0.795, "fell behind the baseline by 0.005, standard error 0.0XX: the baseline stays"),
    ],
)
def test_what_does_not_win_is_said_as_it_came(fresh: float, said: str) -> None:
    result = concluded(confirmed(searched(0.80, 0.90, 0.89, 0.88), config(1), fresh))
    assert result.chose_baseline
    start, _, end = said.partition("0.0XX")
    assert start in sentence(result)
    assert sentence(result).endswith(end)
    assert "beat" not in sentence(result)


def test_a_baseline_that_fails_under_a_fresh_seed_is_not_dropped_in_silence() -> None:
    close = confirmed(searched(0.80, 0.84, 0.83, 0.82), config(1), 0.80, 0.81)
    result = concluded([*close, trial(6, config(0), "confirmation", None)])
    (said,) = (reason for reason in result.why if "the baseline failed under a fresh seed" in reason)
    assert "diverged" in said
    assert not any("the baseline failed" in reason for reason in concluded(close).why)


def test_a_race_decided_from_below_says_why_the_first_run_of_the_baseline_does_not_count() -> None:
    trials = confirmed(searched(1.0, 0.99, 0.95, 0.90), config(0), 0.5)
    result = concluded(confirmed(trials, config(1), 1.05))
    assert result.chosen == config(1)
    assert any("both are compared on fresh seeds alone" in reason for reason in result.why)
    stayed = concluded(confirmed(trials[:-1], config(0), 1.0))
    assert stayed.chose_baseline
    assert any("trained again under a fresh seed because something came close" in reason for reason in stayed.why)
    assert "nothing else scored above the baseline" in concluded(searched(1.0, 0.5, 0.4)).why


def test_the_best_score_that_was_its_seeds_luck_is_named() -> None:
    """Beside rates that are better the one that was lucky is not the finalist, and the report says why."""
    scores = (0.857, 0.78, 0.77, 0.81, 0.85, 0.855, 0.85)
    trials = [trial(0, config(0), "baseline", 0.4)]
    trials += [trial(number, config(number + 8), "search", score) for number, score in enumerate(scores, start=1)]
    assert judge(history(trials)).lucky == config(9)
    (said,) = (reason for reason in concluded(trials).why if "luck" in reason)
    assert said == "batch 32 at 0.01 scored best once; by the trials around it, that was a lucky seed"
