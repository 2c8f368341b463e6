"""Results and progress in a notebook: a frame that nothing leaks out of, and a real kernel that runs cells."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

import pytest

import autobatch
from autobatch.core.plan import Plan
from autobatch.core.progress import Progress
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.measuring.memory import find_max_batch_size
from autobatch.measuring.profiling import profile
from autobatch.render.notebook import _Output
from autobatch.render.standing import best_line
from autobatch.simulated.sim import SimRunner, VirtualClock
from tests.helpers.pages import Page
from tests.helpers.reports import example

from .test_live import STANDING

ROOT = Path(__file__).parents[2]


def inside(frame: str) -> Page:
    """The page in a frame; all of the frame is one element."""
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="" title="[^"<]*" style="[^"]*"></iframe>', frame)
    assert found is not None, frame[:200]
    return Page(html.unescape(found[1]))


def test_each_result_is_a_page_in_a_frame() -> None:
    runner = SimRunner()
    results: list[Any] = [
        example(),
        find_max_batch_size(runner, Plan(batch_size=1), ceiling=64, ceiling_is="ceiling"),
        profile(runner, Plan(batch_size=1), max_batch=64, budget_s=2.0),
        find_lr_curve(runner, Plan(batch_size=64)),
    ]
    for result, title in zip(results, ("digits", "Largest batch", "Throughput", "Range test"), strict=True):
        page = inside(result._repr_html_())
        assert page.problems == []
        assert title in page.words
        assert not {tag for tag, _ in page.tags} & {"script", "iframe"}


def test_a_task_called_like_markup_stays_in_the_frame() -> None:
    name = '"></iframe><script>alert(1)</script>'
    frame = example(task=name)._repr_html_()
    assert frame.count("<") == 2
    assert name in inside(frame).words


def test_outside_of_a_notebook_progress_is_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    listen = autobatch.show_progress()
    listen(Progress(stage="search", kind="began", text="trial 3\x1b[2J", predicted_s=9.5))
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"\[ *[\d.]+ s\] search: trial 3\\x1b\[2J \(about 9\.50 s\)\n", told.err)


def test_the_output_tells_what_is_under_way_how_it_stands_and_the_latest_findings() -> None:
    shown: list[str] = []
    output = _Output(shown.append, VirtualClock())
    for number in range(9):
        output(Progress(stage="memory", kind="found", text=f"batch <{number}>: ok"))
    output(Progress(stage="search", kind="began", text="trial 3", standing=STANDING))
    output(Progress(stage="search", kind="found", text="trial 3: 0.97"))
    assert "batch &lt;8&gt;: ok" in shown[-1]
    assert "batch &lt;2&gt;: ok" not in shown[-1]
    assert html.escape(best_line(STANDING)) in shown[-1]
    assert "<strong>search: trial 3</strong>" in shown[-2]
    assert Page(f"<h1>a</h1>{shown[-1]}").problems == []


CELLS = """
import autobatch
from torch import nn

found = autobatch.find_max_batch(
    nn.Linear(4, 2), sample=autobatch_sample, max_batch_size=4, device="cpu", isolate=False,
    on_progress=autobatch.show_progress(),
)
found
"""


def test_a_real_kernel_shows_results_and_progress() -> None:
    nbclient = pytest.importorskip("nbclient", reason="a notebook is run with nbclient, which is not installed")
    pytest.importorskip("ipykernel", reason="a notebook is run with ipykernel, which is not installed")
    import nbformat

    cells = [
        "import torch\nautobatch_sample = torch.zeros(4)",
        CELLS,
        "from tests.helpers.reports import example\nexample()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, probed, reported = book.cells
    progress, result = (output for output in probed.outputs if output.output_type != "stream")
    assert progress.output_type == "display_data"
    assert "memory: batch 4: ok" in progress.data["text/html"]  # the latest: one output, brought up to date
    assert progress.data["text/html"].count("<strong>") == 1
    assert "Largest batch" in inside(result.data["text/html"]).words
    # Without ipywidgets tqdm, which optuna imports, warns on stderr.
    (shown,) = (output for output in reported.outputs if output.output_type != "stream")
    assert "digits" in inside(shown.data["text/html"]).words
