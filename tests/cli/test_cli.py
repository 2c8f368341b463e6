"""The command line as a user types it: results, exit codes, messages, interrupts, terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import click
import pytest

from autobatch._version import __version__
from autobatch.cli.app import cli
from autobatch.cli.output import progress_on_stderr
from autobatch.core.progress import Kind, Progress, Stage
from autobatch.measuring.learning_rate import FEWEST_STEPS

from ..helpers.pages import Page
from ..helpers.processes import PATIENCE_S, marked, wait_until_unmarked
from ..helpers.ready_python import Started, run
from ..helpers.steady import IS_FORKED, STEADY, Held, train_time

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tests" / "task_files"
MINIMAL = TASKS / "minimal.py"

pytestmark = pytest.mark.usefixtures("ready_python")
CONTROL = re.compile(r"\x1b\[")


def environment(**changes: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AUTOBATCH_")}
    clean.pop("COLUMNS", None)
    return clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | changes


def autobatch(*arguments: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autobatch", *map(str, arguments)]
    return run(command, cwd=cwd, env=environment(**changes), timeout=1800)


# The time is ample, so that what ends the search is the number of trials, on a busy machine too.
QUICK = ("--budget", "600s", "--train-time", train_time(40), "--max-trials", "4", "--device", "cpu")


def refused(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The message of a run that was refused; it has no traceback of ours, and nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "autobatch/cli/app.py" not in result.stderr
    assert "site-packages" not in result.stderr
    return result.stderr


# -- tune


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("tuned")
    files = ("--output", "out.json", "--markdown", "out.md", "--html", "out.html", "--storage", "sqlite:///central.db")
    return folder, autobatch("tune", MINIMAL, *QUICK, "--json", *files, cwd=folder, **STEADY)


def test_tune_prints_the_whole_report_as_json(tuned: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = tuned
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) >= {"horizon_s", "plan", "score", "baseline", "max_batch", "throughput", "trials", "ledger"}
    assert set(report) >= {"device", "why", "schema"}
    plan = {"batch_size", "accumulation_steps", "ranks", "effective_batch_size", "lr", "precision"}
    assert set(report["plan"]) == plan
    assert set(report["score"]) >= {"mean", "stderr", "scores"}
    # That it ends in time is measured (benchmarks/wall_clock.py); here, that it says how long it took.
    assert sum(report["ledger"]["entries"].values()) == report["ledger"]["elapsed_s"] > 0
    assert json.loads((folder / "out.json").read_text()) == report
    assert "batch" in (folder / "out.md").read_text()
    (run,) = (folder / ".autobatch" / "minimal").iterdir()
    assert json.loads((run / "report.json").read_text()) == report
    assert {file.name for file in run.iterdir()} == {"journal.log", "lock", "report.json", "run.json", "worker.log"}


def test_tune_ends_with_the_command_that_shows_all_trials(
    tuned: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    import optuna

    folder, result = tuned
    told = "All trials in a browser: optuna-dashboard sqlite:///central.db"
    assert result.stderr.splitlines()[-1] == told
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{folder / 'central.db'}")
    assert study.n_trials == len(json.loads(result.stdout)["trials"])


def test_tune_writes_a_page_that_is_whole(tuned: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    page = Page((tuned[0] / "out.html").read_text())
    assert page.problems == []
    assert "minimal" in page.words


def test_tune_is_no_worse_than_the_baseline_on_fresh_seeds(
    tuned: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    report = json.loads(tuned[1].stdout)
    assert report["score"]["mean"] >= report["baseline"]["mean"]


SLOW = """
import time

baseline = {"batch_size": 16, "lr": 1e-3}

def loss(model, batch):
    if model.training:
        time.sleep(0.5)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


def test_a_budget_that_compares_nothing_still_measures(tmp_path: Path) -> None:
    """Three trials of 32 steps take 48 seconds, however fast the machine is."""
    (tmp_path / "slow.py").write_text(MINIMAL.read_text() + SLOW)
    result = autobatch("tune", "slow.py", "--budget", "40s", "--device", "cpu", "--output", "out.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "The budget was too short to compare anything" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    more = (
        r"nothing was compared. With more time, this run goes on with: autobatch tune slow\.py --resume --budget TIME"
    )
    assert re.search(more, result.stderr)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["max_batch"]["batch_size"] >= 16
    assert report["plan"]["batch_size"] == 16
    assert re.search("[Gg]ive .*at least", report["not_compared"])
    (run,) = json.loads(autobatch("runs", "--json", cwd=tmp_path).stdout)
    assert run["status"] != "finished"


def test_a_budget_in_which_nothing_ran_is_exit_code_3(tmp_path: Path) -> None:
    result = autobatch("tune", MINIMAL, "--budget", "0.1s", "-q", cwd=tmp_path)
    message = refused(result, code=3).replace("\n", " ")
    assert re.search("It is not known how long opening and checking the task.*takes", message)


def test_progress_off_a_terminal_is_plain_lines(tuned: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    stderr = tuned[1].stderr
    assert not CONTROL.search(stderr)
    for stage in ("memory", "profile", "range test", "search", "confirmation"):
        assert re.search(rf"^\[ *[\d.]+ s\] {stage}: ", stderr, re.MULTILINE), stage
    assert re.search(r"comparing at T = [\d.]+ m?s", stderr)


def test_a_stored_report_shows_again(tuned: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = tuned
    shown = autobatch("report", "out.json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "batch size" in shown.stdout.lower()
    assert not CONTROL.search(shown.stdout)
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert autobatch("report", "out.json", "--json", cwd=folder).stdout == result.stdout
    assert (
        autobatch("report", "out.json", "--markdown", cwd=folder).stdout.strip()
        == (folder / "out.md").read_text().strip()
    )


def test_the_journal_opens_in_plain_optuna(tuned: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder, result = tuned
    (run,) = (folder / ".autobatch" / "minimal").iterdir()
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(run / "journal.log"))))
    assert len(study.trials) == len(json.loads(result.stdout)["trials"])


def interrupt(
    folder: Path, when: str | Path, *arguments: str, number: int = signal.SIGINT, **changes: str
) -> tuple[int, str, str]:
    """What comes of a command that gets a signal: when there is a text in its stderr, or a file."""
    command = [sys.executable, "-m", "autobatch", *arguments]
    # What a shell starts in the background ignores Ctrl-C, and so does what that starts: tests may run so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(folder / "stdout", "w") as stdout, open(folder / "stderr", "w") as stderr:
        process = Started(command, cwd=folder, env=environment(**changes), stdout=stdout, stderr=stderr)

        def is_time() -> bool:
            return when.exists() if isinstance(when, Path) else when in (folder / "stderr").read_text()

        deadline = time.monotonic() + 600
        while not is_time() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        code = process.wait(timeout=PATIENCE_S)
    return code, (folder / "stdout").read_text(), (folder / "stderr").read_text()


def interrupt_race(
    folder: Path, trial: int, *arguments: str, number: int = signal.SIGINT, **changes: str
) -> tuple[int, str, str]:
    """The same of a race by steady steps, while a trial is trained: where that can be had, it waits for the signal."""
    held = Held(folder, (trial,))
    when = held.begun(trial) if IS_FORKED else f"search: trial {trial}"
    return interrupt(folder, when, *arguments, number=number, **{**STEADY, **held.environment, **changes})


def test_ctrl_c_in_the_search_saves_and_prints_what_was_found(tmp_path: Path) -> None:
    code, stdout, stderr = interrupt_race(tmp_path, 2, "tune", str(MINIMAL), *QUICK, "--json")
    assert code == 130, stderr
    report = json.loads(stdout)
    assert report["interrupted"]
    assert report["chose_baseline"]
    (stored,) = tmp_path.glob(".autobatch/minimal/*/report.json")
    assert json.loads(stored.read_text()) == report


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_coordinator_leaves_no_worker_behind(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    most = 0

    def watch() -> None:
        nonlocal most
        while not over.wait(0.2):
            most = max(most, len(marked(mark)))

    over = threading.Event()
    watching = threading.Thread(target=watch)
    watching.start()
    code, _, _ = interrupt(tmp_path, "memory: ", "tune", str(MINIMAL), number=signal.SIGKILL, MARK=mark)
    over.set()
    watching.join()
    assert code == -signal.SIGKILL
    assert most >= 3  # the coordinator, the fork server, a worker
    assert wait_until_unmarked(mark)


WAITING = """
import sys, time

def val_data():
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(900)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_anything_was_found_says_so(tmp_path: Path, number: int) -> None:
    (tmp_path / "slow.py").write_text(f"{MINIMAL.read_text()}\n{WAITING}")
    code, stdout, stderr = interrupt(tmp_path, "waiting", "max-batch", "slow.py", number=number)
    assert code == 130
    assert stdout == ""
    assert stderr.rstrip().endswith("autobatch: interrupted before there was any result")


# Batch 2 is run in a moment; the next does not come to its end, and says when it begins. The check of the task, which
# comes before any size is tried, runs four samples at most.
STUCK = """
import sys, time

def loss(model, batch):
    if len(batch[0]) > 4:
        print("stuck at", len(batch[0]), file=sys.stderr, flush=True)
        time.sleep(900)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

baseline = {"batch_size": 2, "lr": 1e-3}
"""


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_an_interrupt_while_sizes_are_tried_tells_the_largest_that_ran(tmp_path: Path, quiet: list[str]) -> None:
    (tmp_path / "stuck.py").write_text(f"{MINIMAL.read_text()}\n{STUCK}")
    code, stdout, stderr = interrupt(tmp_path, "stuck at", "max-batch", "stuck.py", "--json", *quiet)
    assert code == 130
    assert stdout == ""
    assert re.search(r"autobatch: interrupted\. Results so far:\nmemory: batch 2: ok(, peak \d\S* \wiB)?\n$", stderr)
    assert ("[" in stderr) != bool(quiet)


def test_of_each_stage_the_last_finding_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[Stage, Kind, str]] = [
        ("start", "note", "a task on a device"),
        ("memory", "found", "batch 2: ok, peak 1 MiB"),
        ("memory", "found", "batch 8: ok, peak 4 MiB"),
        ("memory", "failed", "batch 9: over the limit, peak 5 MiB"),
        ("profile", "found", "batch 8: 1,234 samples/s"),
        ("profile", "failed", "batch 4: crashed"),
        ("range test", "began", "100 steps at batch 8"),
        # Words that once were taken for a finding's.
        ("range test", "failed", "min/10 suggests nothing at batch 8"),
        ("search", "began", "trial 0: batch 8, lr 0.001"),
        ("confirmation", "failed", "trial 4: batch 8, lr 0.001: failed: ended after 3 samples/s: ok"),
        ("bench", "found", "what is in a file already"),
    ]

    def run() -> None:
        with progress_on_stderr({"quiet": True}) as listen:
            for stage, kind, text in told:
                listen(Progress(stage=stage, kind=kind, text=text))
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines() == [
        "autobatch: interrupted. Results so far:",
        "memory: batch 8: ok, peak 4 MiB",
        "profile: batch 8: 1,234 samples/s",
    ]


def test_on_a_terminal_progress_is_live_and_leaves_the_screen_clean(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "autobatch", "max-batch", str(MINIMAL), "--max-batch-size", "16"]
    process = Started(command, cwd=tmp_path, env=environment(TERM="xterm-256color"), stdout=follower, stderr=follower)
    os.close(follower)
    screen = b""
    while True:
        ready, _, _ = select.select([leader], [], [], 300)
        assert ready
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        screen += chunk
    assert process.wait(timeout=PATIENCE_S) == 0
    text = screen.decode()
    assert CONTROL.search(text)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor was hidden and is back
    assert re.search(r"\b16\b", text.splitlines()[-1] + text)


# -- max-batch, profile, find-lr, doctor


def test_max_batch_prints_its_evidence_as_json(tmp_path: Path) -> None:
    result = autobatch("max-batch", MINIMAL, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["batch_size"] == 192
    assert found["limited_by"] == "dataset"
    assert set(found) >= {"peak_bytes", "limit_bytes", "probes", "assumed"}
    assert any(p["batch_size"] == 192 and p["outcome"] == "ok" and p["fresh"] for p in found["probes"])


def test_max_batch_says_why_there_is_no_proof(tmp_path: Path) -> None:
    result = autobatch("max-batch", MINIMAL, "--prove", "--output", "out.json", "-q", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    why = "the batch is limited by the dataset, and no size above 192 was to be tried"
    assert f"No proof: {why}." in " ".join(result.stdout.split())
    assert json.loads((tmp_path / "out.json").read_text())["why_not_proved"] == why


def test_profile_and_find_lr_answer_in_json(tmp_path: Path) -> None:
    curve = autobatch("profile", MINIMAL, "--budget", "2s", "--json", "-q", cwd=tmp_path)
    assert curve.returncode == 0, curve.stderr
    assert curve.stderr == ""
    found = json.loads(curve.stdout)
    assert found["knee_batch_size"] in {point["batch_size"] for point in found["measurements"]}
    sweep = autobatch("find-lr", MINIMAL, "--batch-size", 64, "--json", "-q", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert json.loads(sweep.stdout)["rule"] == "min/10"


@pytest.mark.parametrize(
    "command",
    [
        ["max-batch", "--max-batch-size", 16],
        ["profile", "--budget", "1s", "--max-batch-size", 32],
        ["profile", "--budget", "1s", "--max-batch-size", 32, "--precisions", "fp32"],
        ["find-lr", "--steps", FEWEST_STEPS],
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_what_the_check_found_is_printed_by_each_command(tmp_path: Path, command: list[object]) -> None:
    (tmp_path / "odd.py").write_text(MINIMAL.read_text() + '\ndirection = "minimize"\n')
    name, *options = command
    result = autobatch(name, "odd.py", *options, "-q", "--output", "out.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    warning = 'direction is "minimize" and the metric is the default, accuracy: the worst classifier would win'
    assert f"warning: {warning}" in " ".join(result.stdout.split())
    assert json.dumps(warning) in (tmp_path / "out.json").read_text()


ONE_CYCLE = """

def scheduler(optimizer, total_steps):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=total_steps)
"""


def test_a_schedule_with_a_rate_of_its_own_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    text = MINIMAL.read_text() + ONE_CYCLE
    (tmp_path / "own.py").write_text(text.replace("RATE", "0.01"))
    told = refused(autobatch("find-lr", "own.py", "-q", cwd=tmp_path))
    (remedy,) = re.findall(r"pass OneCycleLR max_lr=(\S+)$", told, re.MULTILINE)
    (tmp_path / "given.py").write_text(text.replace("RATE", remedy))
    found = autobatch("find-lr", "given.py", "--steps", FEWEST_STEPS, "--output", "found.json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "The task's schedule was left out" in re.sub(r"\s+", " ", found.stdout)
    assert re.search("range test: .*, without the task's schedule", found.stderr)
    assert json.loads((tmp_path / "found.json").read_text())["without_schedule"] is True


def test_doctor_says_why_a_fact_is_missing(tmp_path: Path) -> None:
    result = autobatch("doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "cpu" in result.stdout.lower()
    assert json.loads(autobatch("doctor", "--json", cwd=tmp_path).stdout)[-1]["kind"] in {"cpu", "cuda", "rocm", "mps"}


# -- bad input

BROKEN = [
    ("no_such_file.py", "no_such_file.py"),
    ("broken/syntax_error.py", r"line \d+"),
    ("broken/model_raises.py", "model_raises.py"),
    ("broken/missing_functions.py", "must define"),
    ("broken/model_not_module.py", "Module"),
    ("broken/data_empty.py", "empty"),
    ("broken/data_short.py", "batch"),
    ("broken/loss_vector.py", "scalar"),
    ("broken/loss_float.py", "float"),
    ("broken/loss_none.py", "None"),
    ("broken/loss_nan.py", "nan|finite"),
    ("broken/metric_shape.py", "shape"),
    ("broken/batch_mismatch.py", "shape"),
    ("broken/odd_sample.py", r"sample \d+"),
]


@pytest.mark.parametrize(("file", "message"), BROKEN, ids=[file for file, _ in BROKEN])
def test_a_broken_task_is_refused_with_what_is_wrong(file: str, message: str, tmp_path: Path) -> None:
    assert re.search(message, refused(autobatch("tune", TASKS / file, "-q", cwd=tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", MINIMAL, "--budget", "soon"], "a duration is written 90s, 10m, 1h30m.*'soon'"),
        (["tune", MINIMAL, "--budget", "-5s"], "above zero; found '-5s'"),
        (["max-batch", MINIMAL, "--memory-limit", "lots"], "a size is written 8GiB.*'lots'"),
        (["max-batch", MINIMAL, "--device", "cuda:99"], "cuda:99"),
        (["max-batch", MINIMAL, "--device", "abacus"], "abacus"),
        (["max-batch", MINIMAL, "--headroom", "1.5"], "headroom is a share.*1.5"),
        (["max-batch", MINIMAL, "--multiple-of", "0"], "0 is not in the range"),
        (["tune", MINIMAL, "--output", "missing/folder/out.json"], "there is no folder"),
        (["tune", MINIMAL, "--markdown", "."], "it is a folder; name a file"),
        (["tune", MINIMAL, "--colour"], "No such option"),
        (["tune"], "Missing argument 'MODEL.py'"),
        (["find-lr", MINIMAL, "--steps", FEWEST_STEPS - 1], "19 is not in the range x>=20"),
        (["report", "any.json", "--markdown", "--json"], "--markdown prints only Markdown"),
        (["report", "any.json", "--markdown", "--output", "out.md"], "--markdown prints only Markdown"),
        (["report", "missing.json"], "missing.json cannot be read"),
        (["tune", MINIMAL, "--warm-start", "missing.json"], "missing.json cannot be read"),
    ],
)
def test_bad_usage_is_refused_before_any_work(arguments: list[Any], message: str, tmp_path: Path) -> None:
    assert re.search(message, refused(autobatch(*arguments, cwd=tmp_path)).replace("\n", " "))


def test_a_model_that_does_not_fit_at_all_is_refused_with_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text(MINIMAL.read_text().replace("16", "8192"))
    message = refused(autobatch("max-batch", "wide.py", "--memory-limit", "200KiB", "-q", cwd=tmp_path))
    assert re.search(r"a batch of 1 must fit in 190 KiB", message)


def test_a_read_only_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    assert "cannot be" in refused(autobatch("tune", MINIMAL, cwd=tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 99}', "reads reports of schema 1; this one has schema 99"),
        ('{"schema": 1, "score": {"mean": NaN}}', "finite numbers; found NaN"),
        ('{"schema": 1, "tas', "is not whole JSON"),
        ("[]", "is a JSON object; found list"),
    ],
)
def test_a_bad_report_is_refused_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    assert message in refused(autobatch("report", "bad.json", cwd=tmp_path))


# A loader that fetches many samples at once ends its process: probes fetch one by one, only timing meets it.
UNTIMED = """
import os

class Deadly(TensorDataset):
    def __getitems__(self, indices):
        os._exit(1)

def train_data():
    return Deadly(*_blobs(0, 16).tensors)

baseline = {"batch_size": 4, "lr": 1e-3}
"""


def test_nothing_that_ran_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "untimed.py").write_text(f"{MINIMAL.read_text()}\n{UNTIMED}")
    message = refused(autobatch("profile", "untimed.py", "--max-batch-size", 4, "-q", cwd=tmp_path), code=3)
    assert "one batch size at least must run when it is timed" in message


@pytest.mark.parametrize("value", ["1", "true", "Yes", "on"])
def test_debug_shows_the_whole_traceback_and_keeps_the_exit_code(tmp_path: Path, value: str) -> None:
    flag, variables = (["--debug"], {}) if value == "1" else ([], {"AUTOBATCH_DEBUG": value})
    result = autobatch("report", "missing.json", *flag, cwd=tmp_path, **variables)
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "autobatch/cli/app.py" in result.stderr


@pytest.mark.parametrize("value", ["0", "false", "No", "off", ""])
def test_debug_is_off_where_the_variable_says_so(tmp_path: Path, value: str) -> None:
    assert "cannot be read" in refused(autobatch("report", "missing.json", cwd=tmp_path, AUTOBATCH_DEBUG=value))


def test_debug_may_stand_in_the_file_and_a_variable_beats_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.autobatch]\ndebug = true\n")
    assert "Traceback" in autobatch("report", "missing.json", cwd=tmp_path).stderr
    refused(autobatch("report", "missing.json", cwd=tmp_path, AUTOBATCH_DEBUG="false"))


# -- settings


def settled(tmp_path: Path, *arguments: str, **variables: str) -> str:
    """What `--budget` came to: each source's value is wrong in its own way, and the message quotes it."""
    return refused(autobatch("tune", MINIMAL, *arguments, cwd=tmp_path, **variables))


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.autobatch]\nbudget = "from the file"\n')
    assert "from the file" in settled(tmp_path)
    assert "from the variable" in settled(tmp_path, AUTOBATCH_BUDGET="from the variable")
    both = settled(tmp_path, "--budget", "from the flag", AUTOBATCH_BUDGET="from the variable")
    assert "from the flag" in both


def test_an_unknown_setting_in_the_file_is_refused_with_the_likely_one(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.autobatch]\nbudgets = "5m"\n')
    assert "did you mean budget?" in settled(tmp_path)


@pytest.mark.parametrize("key", ["finished", "all", "everything"])
def test_nothing_is_deleted_by_a_setting_in_the_file(key: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.autobatch]\n{key} = true\n")
    assert f"unknown key {key!r}" in refused(autobatch("clean", cwd=tmp_path))


def test_every_flag_but_one_has_a_variable() -> None:
    without = {
        f"{name} {option.opts[0]}"
        for name, command in cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and option.envvar is None
    }
    # The variable of tune's --markdown names a file; and what deletes is typed.
    assert without == {"report --markdown", "clean --finished", "clean --all"}


# -- help


def test_help_shows_what_the_file_sets_but_no_databases_url(tmp_path: Path) -> None:
    table = '[tool.autobatch]\nstorage = "postgresql+psycopg://me:s3cret@host/db"\nbudget = "17m"\n'
    (tmp_path / "pyproject.toml").write_text(table)
    done = autobatch("tune", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "default: 17m" in " ".join(done.stdout.split())  # wherever a line ends
    assert "AUTOBATCH_STORAGE" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["tune", "max-batch"])
def test_the_databases_password_does_not_reach_the_task(command: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import os\nraise RuntimeError(sorted(n for n in os.environ if 'BATCH_' in n))\n"
    )
    exported = {"AUTOBATCH_STORAGE": "sqlite:///team.db", "AUTOBATCH_DEVICE": "cpu"}
    told = refused(autobatch(command, "model.py", cwd=tmp_path, **exported))
    assert "AUTOBATCH_DEVICE" in told
    assert "AUTOBATCH_STORAGE" not in told


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["max-batch", "--help"]])
def test_version_and_help_answer_without_the_slow_imports(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "autobatch", *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert (f"autobatch {__version__}" if "--version" in arguments else "Usage:") in result.stdout
    imported = set(re.findall(r"\| +([\w.]+)$", result.stderr, re.MULTILINE))
    assert "click" in imported
    assert not imported & {"torch", "optuna", "numpy", "rich"}


LATE = """
import torch
from torch import nn

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 400
    def __getitem__(self, index):
        if index > LAST: raise ValueError(f"row {index} is broken")
        return torch.ones(3) * index, index % 2

rows = Rows()
def train_data(): return rows
def val_data(): return rows
def model(): return nn.Linear(3, 2)

def after_step(model, step):
    if step >= STEP: raise ValueError("a step too many")
"""


@pytest.mark.parametrize(
    ("last", "step", "command", "message"),
    [
        (40, 10**6, ("max-batch",), "row \\d+ is broken"),
        (40, 10**6, ("tune", "--budget", "90s"), "row \\d+ is broken"),
        (400, 5, ("profile",), "a step too many"),
    ],
    ids=["while the data is looked at", "in tune", "in a later stage"],
)
def test_what_the_check_warned_of_is_told_where_the_command_fails_later(
    last: int, step: int, command: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "late.py").write_text(LATE.replace("LAST", str(last)).replace("STEP", str(step)))
    told = refused(autobatch(*command, "late.py", "--device", "cpu", cwd=tmp_path))
    assert re.search(message, told)
    warned = "Before that, the check of the task had warned:\n- train_data() and val_data() return the same object"
    assert told.count(warned) == 1
