"""The trials of a report for TensorBoard: its HPARAMS tab, and the scores as curves. It needs only TensorBoard's
package.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from ..core.files import make_folder
from ..errors import ReportError, SettingError
from .report import Report
from .trial_table import rows_of

HPARAMS = ("batch_size", "accumulation_steps", "ranks", "effective_batch_size", "lr", "precision", "role")
SCORE = "score"  # tag of the curve
_OURS = ".autobatch"  # the ending of our files' names, so that they are replaced if the report is written again


def check_tensorboard(folder: Path) -> None:
    """Check, before hours of work, that `write_hparams` can write there.

    Raises:
        SettingError: TensorBoard is not installed.
        ReportError: the folder cannot be made.
    """
    try:
        import tensorboard  # noqa: F401  # an optional package
    except ImportError:
        raise SettingError("--tensorboard needs a package that is not installed: pip install tensorboard") from None
    make_folder(folder)


def write_hparams(report: Report, folder: Path) -> Path:
    """Write each trial as a TensorBoard run under `folder`: its settings, and its score over optimizer steps.

    A trial without a score has only its settings. One that failed is marked as such.

    Returns:
        The folder of this report's trials.

    Raises:
        SettingError: TensorBoard is not installed.
        ReportError: a file cannot be written.
    """
    check_tensorboard(folder)
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def ended(status: int, at_s: float) -> Summary:
        data = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=at_s)
        )
        about = metadata.create_summary_metadata(data)
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
        return Summary(value=[value])

    began_s = _seconds(report.created)
    run = folder / re.sub(r"[^\w.+-]+", "-", f"{report.task}-{report.created}", flags=re.ASCII)
    for row, trial in zip(rows_of(report), report.trials, strict=True):
        place = run / f"trial-{row['trial']:04d}"
        try:
            for old in place.glob(f"events.*{_OURS}"):
                old.unlink()
            writer = EventFileWriter(str(place), filename_suffix=_OURS)
            hparams = {name: row[name] for name in HPARAMS}
            summaries = [summary_v2.hparams_pb(hparams, trial_id=place.name, start_time_secs=began_s)]
            is_failed = row["state"] == "failed"
            status = api_pb2.STATUS_FAILURE if is_failed else api_pb2.STATUS_SUCCESS
            events = [Event(wall_time=began_s, step=0, summary=summary) for summary in summaries]
            for step, score in trial["scores"]:
                value = Summary.Value(tag=SCORE, simple_value=score)
                events.append(Event(wall_time=began_s, step=step, summary=Summary(value=[value])))
            end_s = began_s + (row["seconds"] or 0.0)
            events.append(Event(wall_time=end_s, step=row["steps"], summary=ended(status, end_s)))
            for event in events:
                writer.add_event(event)
            writer.close()
        except OSError as error:
            raise ReportError(f"{place} cannot be written: {error.strerror}") from None
    return run


def _seconds(created: str) -> float:
    """The start of a report in seconds since 1970; 0 if it is not readable."""
    try:
        return datetime.fromisoformat(created).timestamp()
    except ValueError:
        return 0.0
