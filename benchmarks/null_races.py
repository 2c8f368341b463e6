"""How often does a race in which nothing is better say that something beat the baseline? The product's own race.

    python benchmarks/null_races.py [--seeds 200] [--trials 8 16] [--searches auto] [--gains 0 2] [--json OUT]

Every setting trains alike but for a normal error of one, a seed's standard deviation, of which three fifths are drawn
anew at each rung; all but the baseline are better by the gain. On that formula runs the whole race on a virtual clock,
with the time for so many full trials: proposals, rungs, the reserve, fresh seeds, the verdict and its words. Shares of
the races:

- recommended: something other than the baseline is the answer.
- beat: that is said of it, in the reasons and in the first line of the report.
- as good: it is recommended as being as good, ahead but not proven.

At a gain of 0 a recommendation costs nobody anything, but "beat" is a false claim: it is to be made in 5 % at most.

`python benchmarks/null_races.py --trials 16` printed, 2026-11-29:

    search  trials  gain  recommended         beat      as good  its probability
    auto        16  +0.0   22.5 ± 3.0    3.0 ± 1.2   19.5 ± 2.8             0.89
    auto        16  +2.0   83.5 ± 2.6   24.5 ± 3.0   59.0 ± 3.5             0.91
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

from provenance import about

from autobatch.core.files import write_json
from autobatch.core.plan import Config, Plan
from autobatch.measuring.profiling import profile
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.search import SearchResult, SearchSettings, search
from autobatch.simulated.sim import SimRunner, draw, sim_facts

BASELINE = Config(plan=Plan(batch_size=32), lr=1e-3)
FULL_TRIAL_S = 60.0
# Of a seed's deviation, what a trial keeps from rung to rung and what each score is drawn anew by: 1 in all.
KEPT, ANEW = 0.8, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """Scores of settings that all train alike, but for a gain over the baseline.

    Attributes:
        gain: in standard deviations of a seed.
        number: of the race, which draws its errors.
    """

    gain: float
    number: int

    def __call__(self, config: Config, share: float, seed: int) -> float:
        of_trial = draw("trial", self.number, seed, config.plan.effective_batch_size, config.lr)
        of_rung = draw("rung", self.number, seed, config.plan.effective_batch_size, config.lr, share)
        better = 0.0 if config == BASELINE else self.gain
        return better - 20 * (1 - share) ** 2 + KEPT * of_trial.gauss(0, 1) + ANEW * of_rung.gauss(0, 1)


@dataclass(slots=True)
class Count:
    """What came of the races of a row."""

    races: int = 0
    recommended: int = 0
    beat: int = 0
    probabilities: list[float] = field(default_factory=list)

    def add(self, result: SearchResult) -> None:
        """One more race."""
        said = any(" beat the baseline by " in reason for reason in result.why)
        if said != result.is_proven:
            raise AssertionError(f"the words and the verdict of one race differ: {result.why}")
        self.races += 1
        self.recommended += not result.chose_baseline
        self.beat += said
        if not result.chose_baseline and not said and result.probability is not None:
            self.probabilities.append(result.probability)

    def share(self, count: int) -> str:
        """A share of the races and its standard error, in percent."""
        part = count / self.races
        return f"{100 * part:5.1f} ±{100 * math.sqrt(part * (1 - part) / self.races):4.1f}"


def race(number: int, gain: float, trials: int, sampler: str = "auto") -> SearchResult:
    """One race with the time for so many full trials."""
    runner = SimRunner(known=sim_facts(baseline=BASELINE), landscape=Alike(gain=gain, number=number), eval_s=0.5)
    curve = profile(runner, Plan(batch_size=1), max_batch=1024, budget_s=5.0, include=[32])
    return search(
        runner,
        Ledger(trials * FULL_TRIAL_S, runner.clock),
        curve,
        max_batch=1024,
        horizon_s=FULL_TRIAL_S - runner.eval_s * 3,
        eval_s=runner.eval_s,
        eval_batch_size=256,
        settings=SearchSettings(seed=number, sampler=sampler),
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first race; others draw other errors")
    parser.add_argument("--trials", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--searches", nargs="+", default=["auto"])
    parser.add_argument("--gains", type=float, nargs="+", default=[0.0, 2.0])
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args()
    print("search  trials  gain  recommended         beat      as good  its probability")
    rows = []
    for sampler in asked.searches:
        for trials in asked.trials:
            for gain in asked.gains:
                count = Count()
                for number in range(asked.first, asked.first + asked.seeds):
                    count.add(race(number, gain, trials, sampler))
                weak = count.probabilities
                mean = f"{sum(weak) / len(weak):.2f}" if weak else "-"
                shares = [count.share(n) for n in (count.recommended, count.beat, count.recommended - count.beat)]
                print(f"{sampler:6} {trials:7} {gain:+5.1f} " + "  ".join(shares) + f"  {mean:>15}", flush=True)
                rows.append(
                    {"search": sampler, "trials": trials, "gain": gain, "races": count.races}
                    | {"recommended": count.recommended, "beat": count.beat, "probabilities": weak}
                )
    if asked.json:
        write_json(asked.json, about("optuna") | {"seeds": asked.seeds, "first": asked.first, "rows": rows})


if __name__ == "__main__":
    main()
