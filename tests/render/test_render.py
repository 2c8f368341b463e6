from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from autobatch.core.facts import DeviceInfo
from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.render.content import difference, report_document
from autobatch.render.document import visible
from autobatch.render.html import to_html
from autobatch.render.markdown import to_markdown as document_to_markdown
from autobatch.render.numbers import grouped, lr_text, score_decimals, score_text, share_text, speed_text
from autobatch.render.terminal import print_devices, print_document, print_lr, print_max_batch, print_profile
from autobatch.reports.report import Report
from autobatch.searching.verdict.confirmation import ScoreSummary
from tests.helpers.reports import CHOSEN, LONG_RUN, YOURS, example, throughput_of, trial

EXAMPLE = example()
HOSTILE = "[red]x[/red] | <b>*y*</b> \x1b[2J\x07 \u202e `z` _w_ \ud800"


def print_report(report: Report, console: Console) -> None:
    print_document(report_document(report), console)


def to_markdown(report: Report) -> str:
    return document_to_markdown(report_document(report))


def drawn(report: Report, width: int = 80) -> str:
    return printed(lambda console: print_report(report, console), width)


def printed(draw: Callable[[Console], None], width: int = 80) -> str:
    file = io.StringIO()
    draw(Console(file=file, width=width, color_system=None))
    return file.getvalue()


def one_line(text: str) -> str:
    """The text without its line breaks, so that a sentence can be looked for."""
    return re.sub(r"\s+", " ", text)


def changed(**changes: Any) -> Report:
    return dataclasses.replace(EXAMPLE, **changes)


def kept(**changes: Any) -> Report:
    """The run in which nothing beat the baseline."""
    values: dict[str, Any] = {"chose_baseline": True, "config": YOURS, "score": EXAMPLE.baseline}
    return changed(**values | changes)


def hostile() -> Report:
    """The run in which every text from outside is one that would do harm."""
    return changed(
        task=HOSTILE,
        command=HOSTILE,
        why=(HOSTILE,),
        warnings=(HOSTILE,),
        device=DeviceInfo(name=HOSTILE, kind="cpu", notes=(HOSTILE,)),
        max_batch={**EXAMPLE.max_batch, "assumed": [HOSTILE]},
    )


def unknown() -> Report:
    """The run of which next to nothing is known."""
    return changed(
        score=None,
        baseline=None,
        learning_rate=None,
        trials=(),
        why=(),
        device=DeviceInfo(name="a card", kind="cuda"),
        max_batch={**EXAMPLE.max_batch, "peak_bytes": None, "limit_bytes": None},
        throughput={
            **throughput_of(EXAMPLE),
            "measurements": [
                {**point, "outcome": "oom", "samples_per_s": None} for point in throughput_of(EXAMPLE)["measurements"]
            ],
        },
        ledger={"budget_s": 60.0, "elapsed_s": 0.0, "entries": {}},
    )


def test_what_to_use_comes_first_and_can_be_typed() -> None:
    lines = [line.strip() for line in drawn(EXAMPLE).splitlines()]
    assert lines[:3] == ["digits", "", "Use"]
    assert lines[3:7] == ["batch_size = 128", "accumulation_steps = 2", "lr = 0.00345", 'precision = "fp32"']
    assert "averages over 256 samples" in one_line(drawn(EXAMPLE))


def test_the_sections_stand_in_the_order_a_reader_asks() -> None:
    titles = re.findall(r"^\S.*$", drawn(changed(warnings=("slow",))), re.MULTILINE)
    assert titles == [
        *("digits", "Use", "Against your configuration", "Where it holds", "Why", "Largest batch", "Throughput"),
        *("Range test", "Trials", "Where the time went", "Warnings", "Measured on"),
    ]


def test_the_gain_is_stated_with_its_standard_error() -> None:
    text = one_line(drawn(EXAMPLE))
    assert "This beat your configuration on fresh seeds." in text
    # sqrt(0.0021 ** 2 + 0.0036 ** 2)
    assert "The mean score is higher by 0.0206, standard error 0.0042. Higher is better." in text
    assert re.search(r"this +0\.9718 +0\.0021 +3", drawn(EXAMPLE))
    assert re.search(r"yours +0\.9512 +0\.0036 +1", drawn(EXAMPLE))
    assert "Your configuration is batch_size 32, accumulation_steps 1, lr 0.001, fp32." in text


def test_a_lead_that_is_not_proven_is_called_as_good_in_every_rendering() -> None:
    weak = changed(probability=0.9149, is_proven=False, why=("11 trials",))
    page = re.sub(r"<[^>]*>", "", to_html(report_document(weak)))
    for text in (drawn(weak), document_to_markdown(report_document(weak)), page):
        said = one_line(text)
        assert "This is as good as your configuration." in said
        assert "ahead on fresh seeds, which is not proven: it is better with a probability of 91%." in said
        assert " beat " not in said


def test_a_report_from_before_probabilities_claims_no_more_than_it_knows() -> None:
    old = one_line(drawn(changed(probability=None, is_proven=None)))
    assert "This was ahead of your configuration on fresh seeds." in old
    assert "This beat" not in old


def test_a_recommendation_without_a_fresh_seed_shows_the_score_of_the_search_marked() -> None:
    report = changed(score=None)
    for text in (drawn(report), document_to_markdown(report_document(report)), to_html(report_document(report))):
        said = one_line(re.sub(r"<[^>]*>", " ", text).replace("\\", ""))
        assert "0.9750 (search)" in said
        assert "is the one by which this was selected, so it is rather too high" in said
    assert report.to_json()["score"] == {"mean": None, "stderr": None, "scores": [], "test": None, "search": 0.975}
    confirmed = one_line(drawn(EXAMPLE))
    assert "(search)" not in confirmed
    assert EXAMPLE.to_json()["score"]["search"] is None


def test_lower_reads_as_better_where_it_is() -> None:
    report = changed(
        direction="minimize",
        score=ScoreSummary(mean=0.412, stderr=0.01, scores=(0.41,)),
        baseline=ScoreSummary(mean=0.45, stderr=0.01, scores=(0.45,)),
    )
    assert "The mean score is lower by 0.038, standard error 0.014. Lower is better." in one_line(drawn(report))


def test_a_baseline_that_stays_is_said_plainly() -> None:
    text = one_line(drawn(kept()))
    assert "This is your configuration. Nothing beat it: keep what you have." in text
    assert "The mean score is" not in text
    assert "lr = 0.001" in text


def test_a_default_is_never_called_the_users() -> None:
    text = one_line(drawn(kept(baseline_is_users=False)))
    assert "This is the default. Nothing beat it" in text
    assert "Against the default" in text
    assert "your configuration" not in text
    assert "yours" not in text


def test_an_interrupted_run_says_what_is_not_confirmed() -> None:
    report = kept(interrupted=True, score=None, baseline=None)
    text = one_line(drawn(report))
    assert "This is your configuration. It was not trained to the end: its score is unknown." in text
    assert "The run was stopped before its end" in text
    assert "Not confirmed: 128 x 2 at 0.00345 scored 0.9750, once." in text


def test_what_scored_below_the_baseline_is_not_offered_when_interrupted() -> None:
    trials = (
        trial(0, YOURS, "baseline", (0.9, 0.9, 0.95)).to_json(),
        trial(1, CHOSEN, "search", (0.9, 0.9, 0.94)).to_json(),
    )
    assert "Not confirmed" not in drawn(kept(interrupted=True, trials=trials))


def test_a_choice_without_fresh_seeds_says_so() -> None:
    text = one_line(drawn(changed(score=None)))
    assert "It is not confirmed on fresh seeds." in text
    assert "There is no difference to state: only one of them has a score." in text


@pytest.mark.parametrize(
    ("train_time_s", "sentence"),
    [
        (None, "If your training takes longer, say how long (--train-time)"),
        (3.5, "That is as long as your training."),
        (7200.0, "Your training takes 2h 00m, longer than T"),
    ],
)
def test_the_horizon_is_said_aloud(train_time_s: float | None, sentence: str) -> None:
    text = one_line(drawn(changed(train_time_s=train_time_s)))
    assert "compared at T = 3.50 s of training each" in text
    assert sentence in text


def test_what_is_extrapolated_is_said_to_be() -> None:
    report = changed(train_time_s=14.0, long_run=LONG_RUN)
    text = one_line(drawn(report))
    assert "BEYOND T (EXTRAPOLATED)" in text.upper()
    assert "Extrapolated, not measured: no configuration was trained for longer than 3.50 s." in text
    assert "Learning rate for 14.0 s, at the same batch: 0.0025, 90% interval 0.0012 to 0.005." in text
    assert "the best rate fell (0.006 at T/8, 0.005 at T/2, 0.0035 at T)" in text
    assert "T/2 to T 83% of 6 pairs" in text
    assert re.search(r"your configuration, batch 32, lr 0.001 \| +0.0200 \| +0.0100 \|", to_markdown(report))
    assert "extrapolated" not in drawn(EXAMPLE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"measured": None, "slope": 0.0}, "Too few trials reached two rungs"),
        ({"slope": 0.0}, "Over the rungs the best rate did not fall"),
    ],
)
def test_a_rate_without_a_fall_is_left_as_it_is(changes: dict[str, Any], sentence: str) -> None:
    long_run = LONG_RUN | {"lr": LONG_RUN["lr"] | changes, "stability": [], "forecasts": []}
    text = one_line(drawn(changed(train_time_s=7200.0, long_run=long_run | {"train_time_s": 7200.0})))
    assert "Your training is 2,057 times as long" in text
    assert sentence in text
    assert "so it is left as it is" in text
    assert "tried for up to 4 times T only" in text
    assert "the stability of the ranking is unknown" in text


def test_a_runner_up_that_was_picked_by_its_one_score_is_said_to_look_too_good() -> None:
    lead = LONG_RUN["forecasts"][0]
    said = "The runner-up was picked by its only score"
    for is_picked in (True, False):
        found = LONG_RUN | {"forecasts": [lead, lead | {"against": "runner-up", "is_picked": is_picked}]}
        assert (said in one_line(drawn(changed(train_time_s=14.0, long_run=found)))) == is_picked
    before = {key: value for key, value in lead.items() if key != "is_picked"}
    assert said not in one_line(drawn(changed(train_time_s=14.0, long_run=LONG_RUN | {"forecasts": [before]})))


@pytest.mark.parametrize(("kept", "is_said"), [(0.5, True), (0.2, True), (0.51, False)])
def test_where_the_order_did_not_last_it_is_said_that_nothing_is_said_of_the_leads(kept: float, is_said: bool) -> None:
    early = LONG_RUN["stability"][0] | {"early": 0.125, "late": 1.0, "kept": 0.1}
    found = LONG_RUN | {"stability": [early, LONG_RUN["stability"][0] | {"kept": kept}], "forecasts": []}
    text = one_line(drawn(changed(train_time_s=14.0, long_run=found)))
    assert ("From T/2 to T no more than half kept it, so there is no forecast of the lead" in text) == is_said
    assert "lead over" not in text


def test_test_scores_are_shown_where_there_are_some() -> None:
    assert "test score" not in drawn(EXAMPLE)
    assert re.search(r"this +0\.9718 +0\.0021 +3 +0\.9600", drawn(changed(test_score=0.96, test_baseline=0.95)))


def test_the_knee_the_chosen_and_the_users_batch_are_marked_without_colour() -> None:
    text = drawn(EXAMPLE)
    assert re.search(r"32 +12,121 +yours +█", text)
    assert re.search(r"128 +28,070 +chosen +█", text)
    assert re.search(r"256 +35,955 +knee +█", text)


def test_bars_are_in_proportion() -> None:
    bars = [line.count("█") for line in drawn(EXAMPLE).splitlines() if re.match(r" +\d+ +[\d,]+ ", line)]
    speeds = [point["undisturbed_samples_per_s"] for point in throughput_of(EXAMPLE)["measurements"]]
    assert bars == [round(8 * 30 * speed / max(speeds)) // 8 for speed in speeds]


def test_at_most_eight_trials_are_shown_the_chosen_and_the_baseline_among_them() -> None:
    worst = Config(plan=Plan(batch_size=16), lr=1e-4)
    trials = tuple(
        [trial(0, YOURS, "baseline", (0.1,)).to_json(), trial(1, worst, "search", (), state="failed").to_json()]
        + [trial(2 + i, Config(plan=CHOSEN.plan, lr=i / 7 + 1), "search", (0.9, 0.9, 0.9)).to_json() for i in range(20)]
    )
    rows = re.findall(r"^ +(\d+ x \d+) .*$", drawn(changed(trials=trials, config=worst)), re.MULTILINE)
    assert len(rows) == 8
    assert rows[-2:] == ["32 x 1", "16 x 1"]


def test_the_best_of_the_furthest_trained_comes_first_and_a_failure_names_its_reason() -> None:
    few = [EXAMPLE.trials[i] for i in (11, 2, 0, 1)]
    for direction, order in (("maximize", ["128 x 2", "32 x 1"]), ("minimize", ["32 x 1", "128 x 2"])):
        text = drawn(changed(trials=tuple(few), direction=direction))
        assert re.findall(r"^ +(\d+ x \d+) ", text, re.MULTILINE) == [*order, "64 x 1", "512 x 1"]
        assert re.search(r"512 x 1 +3 +- +0% +diverged +search", text)


def test_the_ledger_is_sorted_and_whole() -> None:
    text = drawn(EXAMPLE).split("Where the time went")[1]
    assert "42.6 s of a budget of 1m 00s." in text
    assert [text.index(kind) for kind in ("training", "memory", "evaluation")] == sorted(
        text.index(kind) for kind in ("training", "memory", "evaluation")
    )
    assert re.search(r"evaluation +0\.10 s +<1%", text)


@pytest.mark.parametrize("width", [1, 10, 20, 40, 60, 80, 120])
@pytest.mark.parametrize("report", [EXAMPLE, kept(), hostile(), unknown()], ids=["gain", "kept", "hostile", "unknown"])
def test_no_line_is_wider_than_the_terminal(report: Report, width: int) -> None:
    def draw(console: Console) -> None:
        print_report(report, console)
        print_max_batch(report.max_batch, console)
        print_profile(throughput_of(report), console)
        print_devices([report.device], console)
        if report.learning_rate is not None:
            print_lr(report.learning_rate, console)

    lines = printed(draw, width).splitlines()
    assert lines
    assert max(cell_len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [40, 80])
def test_at_forty_columns_no_number_is_broken(width: int) -> None:
    text = drawn(EXAMPLE, width)
    assert re.search(r"^ +128 x 2 +0\.00345 +0\.9750 +100%", text, re.MULTILINE)
    assert re.search(r"^ +512 +41,830 .*█$", text, re.MULTILINE)
    assert re.search(r"^ +yours +0\.9512 +0\.0036", text, re.MULTILINE)


def test_text_from_outside_is_not_markup_and_reaches_no_terminal_as_a_code() -> None:
    text = drawn(hostile(), 120)
    assert text.startswith("[red]x[/red] | <b>*y*</b> \\x1b[2J\\x07 \\u202e `z` _w_ \\ud800\n")
    assert text.count("[red]x[/red]") == 7  # title, why, warning, assumption, device, its note, command
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\ud800"}


def test_a_terminal_without_blocks_gets_other_bars_and_no_error() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_report(changed(task="Größe"), Console(file=file, width=80, color_system=None))
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert text.startswith("Gr\\xf6\\xdfe\n")
    assert re.search(r"512 +41,830 +#{30}\n", text)


def test_nothing_depends_on_colour() -> None:
    file = io.StringIO()
    print_report(EXAMPLE, Console(file=file, width=80, force_terminal=True, color_system="truecolor"))
    assert "\x1b[" in file.getvalue()
    assert re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()) == drawn(EXAMPLE)


def test_the_unknown_reads_as_unknown() -> None:
    text = one_line(drawn(unknown()))
    assert "with an unknown peak of the unknown that may be used" in text
    assert "32 out of memory yours" in text
    assert "memory unknown" in text


def test_every_fact_about_a_device_is_there_and_why_one_is_missing() -> None:
    device = DeviceInfo(
        name="NVIDIA H200",
        kind="cuda",
        index=1,
        memory_bytes=150 << 30,
        driver="550.54",
        power_limit_w=700.0,
        notes=("free memory: the driver does not say",),
    )
    text = printed(lambda console: print_devices([device, DeviceInfo(name="a chip", kind="cpu")], console))
    assert re.findall(r"^\S.*$", text, re.MULTILINE) == ["NVIDIA H200", "a chip"]
    for row in ("index +1", "memory +150 GiB", "free memory +unknown", "driver +550.54", "power limit +700 W"):
        assert re.search(row, text)
    assert "- free memory: the driver does not say" in text


def test_every_probe_is_told() -> None:
    text = printed(lambda console: print_max_batch(EXAMPLE.max_batch, console))
    assert "512 samples ran" in text
    for probe in EXAMPLE.max_batch["probes"]:
        assert re.search(rf"^ +{probe['batch_size']} +ok ", text, re.MULTILINE)


def test_the_profile_says_what_was_skipped_and_what_starves() -> None:
    found = {**throughput_of(EXAMPLE), "skipped": [1024, 2048], "starvation": "the device waits for data"}
    text = printed(lambda console: print_profile(found, console))
    assert "Not timed, for lack of time: 1024, 2048." in text
    assert "the device waits for data" in text
    assert "Fastest at batch 512: 41,830 samples/s." in text
    knee = f"Speed saturates at batch {found['knee_batch_size']}: the smallest with 80 % of the highest samples/s."
    assert knee in one_line(text)


def test_the_fastest_size_is_told_with_the_figure_of_its_row() -> None:
    """A stall makes the mean step longer and leaves the median, which the table shows, as it is."""
    plans = {size: Plan(batch_size=size) for size in (8, 16)}
    steps = {8: (1.0, 1.0, 99.0), 16: (1.0, 1.0, 1.0)}
    measured = (Measurement(plan=plans[size], outcome="ok", step_s=steps[size]) for size in plans)
    found = ThroughputCurve(measurements=tuple(measured)).to_json()
    text = printed(lambda console: print_profile(found, console))
    assert "Fastest at batch 16: 16 samples/s." in text
    assert re.search(r"^ +16 +16 ", text, re.MULTILINE)


def test_a_range_test_without_an_answer_says_so() -> None:
    assert EXAMPLE.learning_rate is not None
    found = {**EXAMPLE.learning_rate, "suggestion": None, "diverged_at": None, "smoothed": [], "lrs": []}
    text = one_line(printed(lambda console: print_lr(found, console)))
    assert "suggests nothing: the loss never fell by more than its noise" in text
    assert "the loss never blew up" in text


def test_a_range_test_says_what_of_the_task_it_left_out() -> None:
    assert EXAMPLE.learning_rate is not None
    without = changed(learning_rate={**EXAMPLE.learning_rate, "without_schedule": True})
    sentence = "The task's schedule was left out: the test sets the rate of each step itself."
    for draw in (drawn, to_markdown):
        assert sentence in one_line(draw(without))
        assert sentence not in one_line(draw(EXAMPLE))
    assert sentence in one_line(printed(lambda console: print_lr(without.learning_rate or {}, console)))


def test_a_stored_report_draws_as_the_fresh_one() -> None:
    stored = Report.from_json(EXAMPLE.to_json())
    assert drawn(stored) == drawn(EXAMPLE)
    assert to_markdown(stored) == to_markdown(EXAMPLE)


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)


@pytest.mark.parametrize("report", [EXAMPLE, kept(), hostile(), unknown()], ids=["gain", "kept", "hostile", "unknown"])
def test_markdown_tables_are_valid_and_there_is_no_html(report: Report) -> None:
    text = to_markdown(report)
    assert text.startswith("# ")
    assert text.endswith("\n")
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for table in blocks:
        assert {len(cells(line)) for line in table} == {len(cells(table[0]))}
        assert re.fullmatch(r"\|( -{3}:? \|)+", table[1])
    assert not re.search(r"(?<!\\)[<>]", text)
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\ud800"}


def test_markdown_holds_what_the_terminal_shows() -> None:
    report = changed(warnings=("slow",))
    text = to_markdown(report)
    assert 'batch_size = 128\naccumulation_steps = 2\nlr = 0.00345\nprecision = "fp32"\n```' in text
    assert "| yours | 0.9512 | 0.0036 | 1 |" in text
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert titles == re.findall(r"^\S.*$", drawn(report), re.MULTILINE)


def test_markdown_takes_no_text_from_outside_for_a_list_or_a_heading() -> None:
    text = to_markdown(changed(why=("1. first", "- dash", "# heading", "3.5 is a number", "a\nb")))
    for line in ("- 1\\. first", "- \\- dash", "- \\# heading", "- 3.5 is a number", "- a b"):
        assert f"\n{line}\n" in text


@given(st.text())
def test_visible_text_is_one_line_of_what_can_be_printed(text: str) -> None:
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
    shown.encode()


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e3))
def test_scores_show_two_digits_of_their_standard_error(score: float, stderr: float) -> None:
    decimals = score_decimals([score], [stderr])
    last = 10.0**-decimals
    assert decimals == 0 or stderr / 100 <= last  # not more than that
    shown = f"{score:.{decimals}f}".replace(".", "").lstrip("0")
    assert decimals == 0 or last <= stderr / 9 or len(shown) >= 8  # and enough, up to eight digits in all


@given(st.floats(-1e300, 1e300), st.none() | st.floats(0, 1e300))
def test_no_score_is_too_long_for_a_column(score: float, stderr: float | None) -> None:
    text = score_text(score, score_decimals([score], [stderr]))
    assert len(text) <= 12
    assert float(text) == pytest.approx(score, rel=1e-2, abs=stderr or 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (score_text(-0.0001, 2), "0.00"),
        (score_text(None, 2), "-"),
        (score_text(0.5, score_decimals([0.5], [None])), "0.5000"),
        (score_text(1234.5, score_decimals([1234.5], [120.0])), "1234"),
        (score_text(0.0, score_decimals([0.0], [0.0])), "0.000"),
        (lr_text(1.25e-5), "1.25e-5"),
        (lr_text(0.1 + 0.2, 6), "0.3"),
        (speed_text(1234567.8), "1,234,568"),
        (speed_text(0.01234), "0.0123"),
        (share_text(0.001), "<1%"),
        (share_text(0.0), "0%"),
    ],
)
def test_numbers_are_written_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected


def test_the_difference_has_the_sign_of_the_score() -> None:
    found = difference(EXAMPLE)
    assert found is not None
    assert found == pytest.approx((0.97183 - 0.9512, (0.0021**2 + 0.0036**2) ** 0.5))
    assert difference(kept()) is None


def test_remarks_that_differ_in_their_percentages_alone_are_one() -> None:
    remarks = [(8, "had it 26% of the time"), (16, "is hot"), (32, "had it 63% of the time"), (8, "is hot")]
    assert grouped(remarks) == [((8, 32), "had it 26% to 63% of the time"), ((8, 16), "is hot")]
    assert grouped([(1, "5% of 7%")]) == [((1,), "5% of 7%")]
    assert grouped([]) == []
