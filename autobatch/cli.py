"""The command line: flags in, a stage run, results to stdout, everything else to stderr.

Only click is imported here at first, so that `--help` and `--version` answer at once; each command imports what it
runs.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from . import __version__
from .errors import AutobatchError, NoValidResult, RankLost, SettingError, StorageError, WorkerDied
from .storage_url import shown_url

if TYPE_CHECKING:
    from rich.console import Console

    from .bench_report import BenchReport
    from .progress import Listener, Progress
    from .render.document import Document
    from .report import Report

F = TypeVar("F", bound=Callable[..., Any])

# A line of a stage that holds these words tells what was found; others tell what begins, or what failed.
_FINDINGS = {
    "memory": ": ok",
    "profile": "samples/s",
    "range test": "suggest",
    "search": " after ",
    "confirmation": " after ",
}

# Exit codes: 2 is what could be known before training; click itself exits 2 for a wrong usage.
_FOUND_NOTHING, _FAILED, _REFUSED, _INTERRUPTED = 3, 1, 2, 130


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    """A click option that may also stand in the environment: `--memory-limit` is AUTOBATCH_MEMORY_LIMIT."""
    variable = "AUTOBATCH_" + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, show_default=True, **settings)


def _note_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """For `main`, which answers for errors: it sees no options, and this one may stand in a variable or a file too."""
    context.ensure_object(dict)["debug"] = value


def _options(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class _Several(click.Option):
    """An option that takes all words that follow it, as long as `belongs` knows them: `--precisions fp32 bf16`."""

    def __init__(self, *args: Any, belongs: Callable[[str], bool], **settings: Any) -> None:
        super().__init__(*args, **(settings | {"multiple": True}))
        self.belongs = belongs


class _Command(click.Command):
    """A command that may have such options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {name: option for option in self.params if isinstance(option, _Several) for name in option.opts}
        spread: list[str] = []
        current: str | None = None
        for word in args:
            if current is not None and spread[-1] != current and not word.startswith("-"):
                if several[current].belongs(word):
                    spread.append(current)
                else:
                    current = None
            elif word.startswith("-"):
                current = word if word in several else None
            spread.append(word)
        return super().parse_args(ctx, spread)


def _names_an_arm(word: str) -> bool:
    from .arm import Arm

    try:
        Arm.parse(word)
    except SettingError:
        return False
    return True


_LATEST = "latest"  # what --resume stands for by itself
_FEWEST_STEPS = 20  # learning_rate.FEWEST_STEPS, which is not imported for `--help`
_TASK = click.argument("task", type=click.Path(path_type=Path), metavar="MODEL.py")
_DEVICE = _option("--device", default="auto", help='"auto", "cpu", "cuda", "cuda:1" or "mps".')
_MEMORY = _options(
    _option("--memory-limit", metavar="SIZE", help="Behave as if the device had this much: 8GiB, 500MB."),
    _option("--headroom", type=float, default=0.05, help="Share of the limit that a batch must leave free."),
)
_CEILING = _option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Look no further; by default than the data, or 131072.",
)
_NPROC = _option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Train in N processes together (DDP), a GPU for each. Batch sizes are then those of each process.",
)
_OBJECTIVE = _option(
    "--objective",
    type=click.Choice(["throughput", "energy", "balanced"]),
    default="throughput",
    help="What the recommended batch size is best in: samples/s, joules a sample, or both.",
)
_PRECISIONS = _option(
    "--precisions",
    cls=_Several,
    belongs=_names_an_arm,
    metavar="NAME ...",
    help="Ways to compute: fp32 tf32 bf16 fp16, each also with +channels_last or +compile.",
)
_OUTPUT = _options(
    _option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    _option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Also write the JSON to this file."),
    _option("--quiet", "-q", is_flag=True, help="No progress on stderr."),
    _option(
        "--debug",
        is_flag=True,
        is_eager=True,  # so that it holds for what is wrong with the others
        expose_value=False,
        callback=_note_debug,
        help="Show tracebacks of autobatch's own frames.",
    ),
)


class _Settings(click.Group):
    """A group whose commands take their defaults from `[tool.autobatch]` of the nearest pyproject.toml."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        kwargs.setdefault("default_map", {})
        context = super().make_context(*args, **kwargs)
        return context

    def invoke(self, ctx: click.Context) -> Any:
        settings = _read_settings(Path.cwd())
        known = {
            name: {parameter.name for parameter in command.params if isinstance(parameter, click.Option)}
            for name, command in self.commands.items()
        }
        for key in settings:
            if not any(key in names for names in known.values()):
                close = difflib.get_close_matches(key, {name for names in known.values() for name in names if name}, 1)
                hint = f"; did you mean {close[0].replace('_', '-')}?" if close else ""
                raise SettingError(
                    f"[tool.autobatch] of pyproject.toml has an unknown key {key.replace('_', '-')!r}{hint}"
                )
        ctx.default_map = {name: {k: v for k, v in settings.items() if k in names} for name, names in known.items()}
        return super().invoke(ctx)


def _read_settings(start: Path) -> dict[str, Any]:
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if file.is_file():
            try:
                tables = tomllib.loads(file.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise SettingError(f"{file} cannot be read: {error}") from None
            table = tables.get("tool", {}).get("autobatch", {})
            if not isinstance(table, Mapping):
                raise SettingError(f"[tool.autobatch] of {file} is a table of settings; found {table!r}")
            aliases = {"json": "as_json"}
            return {aliases.get(key, key.replace("-", "_")): value for key, value in table.items()}
    return {}


@click.group(cls=_Settings, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="autobatch %(version)s")
def cli() -> None:
    """Find the batch size and learning rate that give a PyTorch task its best score in the time you have.

    Every flag but "report --markdown" and those of "clean" can stand in [tool.autobatch] of pyproject.toml and in an
    AUTOBATCH_ variable; a flag beats the environment, which beats the file.
    """


@cli.command()
@click.argument("task", type=click.Path(path_type=Path), metavar="MODEL.py", required=False)
@_option("--budget", default="10m", metavar="TIME", help="Wall time for everything: 90s, 10m, 1h30m.")
@_option("--train-time", metavar="TIME", help="How long your real training takes; compared at this where affordable.")
@_DEVICE
@_MEMORY
@_NPROC
@_option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train N trials at the same time, a GPU for each; by default one on each GPU there is.",
)
@_option("--seed", type=int, default=0, help="Of everything that is drawn.")
@_option("--search", type=click.Choice(["tpe", "freeze-thaw"]), default="tpe", help="How the next trial is chosen.")
@_option(
    "--warm-start",
    type=click.Path(path_type=Path),
    metavar="REPORT.json",
    multiple=True,
    help="What this earlier run chose is tried first.",
)
@_option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Try no more configurations than this.")
@_option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Where workers run: on this machine, or on a Ray cluster, a GPU for each.",
)
@_option("--address", metavar="ADDRESS", help="Of the Ray cluster: auto, ray://host:10001; by default one here.")
@_option(
    "--storage",
    metavar="URL",
    help="Record the run in this database too: postgresql+psycopg://user@host/name, or any that Optuna takes.",
)
@_option("--run-dir", type=click.Path(path_type=Path), metavar="DIR", help="Default: .autobatch/<task>/<time>/")
@_option(
    "--resume",
    is_flag=False,
    flag_value=_LATEST,
    metavar="[RUN]",
    help="Go on with a run that was stopped: this folder, or the task's latest. Its settings hold; a flag changes one.",
)
@_option("--force", is_flag=True, help="Resume though the task, its data, the device or a setting has changed.")
@_option(
    "--keep-checkpoints",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Leave those of the N best trials in the run's folder.",
)
@_option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write the report as Markdown.")
@_OUTPUT
def tune(task: Path | None, **options: Any) -> None:
    """Search batch size, learning rate and accumulation steps for the best validation score."""
    context = click.get_current_context()
    resume = options["resume"]
    if task is None and resume is not None and resume.endswith(".py"):  # --resume model.py
        task, resume = Path(resume), _LATEST
    if task is None:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    _refuse_torchrun("tune")
    from .files import check_writable

    for file in (options["output"], options["markdown"]):
        if file is not None:
            check_writable(file)
    from . import api
    from .units import parse_duration

    names: tuple[str, ...]
    names = ("budget", "train_time", "device", "memory_limit", "headroom", "seed", "search", "warm_start", "max_trials")
    names += ("keep_checkpoints", "nproc", "workers", "storage", "engine", "address")
    settings = {name: options[name] for name in names}
    if resume is not None:  # the run's own, but for what was typed beside --resume
        typed, exported = click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT
        sources = {name: context.get_parameter_source(name) for name in settings}
        # The password of a database is not kept, and often stands in the environment.
        again = {name for name in settings if sources[name] == typed or (name, sources[name]) == ("storage", exported)}
        settings = {name: given for name, given in settings.items() if name in again}
    budget_s = None if resume is not None else parse_duration(options["budget"])
    named = options["run_dir"] if resume in (None, _LATEST) else resume
    how = shlex.join(["autobatch", "tune", str(task), "--resume", *([] if named is None else [str(named)])])
    with _progress(options, budget_s=budget_s, how_to_resume=how) as listen:
        report = api.tune(
            task,
            **settings,
            run_dir=options["run_dir"],
            resume=resume == _LATEST or resume or False,
            force=options["force"],
            command=_command(),
            on_progress=listen,
            started_s=time.monotonic() - _process_age_s(),
        )
    if options["markdown"] is not None:
        from .files import write_whole
        from .render.content import report_document
        from .render.markdown import to_markdown

        write_whole(options["markdown"], to_markdown(report_document(report)))
    _show_report(report, options)
    if report.interrupted:
        _fail(f"interrupted. Go on with: {how}", _INTERRUPTED)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path(".autobatch"), metavar="[FOLDER]")
@_OUTPUT
def runs(folder: Path, **options: Any) -> None:
    """List the runs of `tune`: where each stands, what of its budget is spent, and its best so far."""
    _check_output(options)
    from .render.terminal import print_runs
    from .runs import run_folders, summary

    _show([summary(path).to_json() for path in run_folders(folder)], print_runs, options)


@cli.command()
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, metavar="[RUN]...")
@click.option("--finished", is_flag=True, help="All runs in .autobatch that came to their end.")
@click.option("--all", "everything", is_flag=True, help="All runs in .autobatch but those under way.")
def clean(folders: tuple[Path, ...], finished: bool, everything: bool) -> None:
    """Delete runs of `tune`: their journals, checkpoints, logs and reports, and nothing else."""
    if bool(folders) + finished + everything != 1:
        raise click.UsageError("name the runs to delete, or give --finished or --all; `autobatch runs` lists them")
    from .runs import remove_run, run_folders, summary

    if not folders:
        wanted = {"finished"} if finished else {"finished", "interrupted", "unreadable"}
        folders = tuple(path for path in run_folders(Path(".autobatch")) if summary(path).status in wanted)
    for path in folders:
        remove_run(path)
        click.echo(f"deleted {path}")
    if not folders:
        click.echo("there is nothing to delete")


@cli.command("max-batch")
@_TASK
@_DEVICE
@_MEMORY
@_NPROC
@_option("--mode", type=click.Choice(["training", "inference"]), default="training", help="What must fit.")
@_option("--multiple-of", type=click.IntRange(min=1), default=1, help="Answer with a multiple of this.")
@_option("--power-of-two", is_flag=True, help="Answer with a power of two.")
@_CEILING
@_option(
    "--accumulation-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Batches whose gradients are summed before a step; by default the baseline's.",
)
@_option("--prove", is_flag=True, help="Also run the next size, in a process of its own, and see it fail.")
@_option("--soak", type=click.IntRange(min=0), default=0, metavar="N", help="Also train N steps on real batches.")
@_option("--record", type=click.Path(path_type=Path), metavar="FILE", help="Keep all probes, to be replayed.")
@_OUTPUT
def max_batch(task: Path, **options: Any) -> None:
    """Find the largest batch that fits in memory, by running it.

    Under torchrun, on every rank: the answer is what fits on all of them.
    """
    _check_output(options)
    from . import api

    with _on_each_rank() as is_first:
        with _progress(options if is_first else {**options, "quiet": True}) as listen:
            found = api.find_max_batch(
                task,
                device=options["device"],
                memory_limit=options["memory_limit"],
                headroom=options["headroom"],
                mode=options["mode"],
                multiple_of=options["multiple_of"],
                power_of_two=options["power_of_two"],
                max_batch_size=options["max_batch_size"],
                accumulation_steps=options["accumulation_steps"],
                prove=options["prove"],
                soak=options["soak"],
                record=options["record"],
                nproc=options["nproc"],
                on_progress=listen,
            )
        from .render.terminal import print_max_batch

        result = found.to_json()
        if options["prove"]:
            result["why_not_proved"] = found.why_not_proved
        if is_first:
            _show(result, print_max_batch, options)


@cli.command(cls=_Command)
@_TASK
@_option("--budget", default="30s", metavar="TIME", help="Time for the timing itself, of each precision.")
@_DEVICE
@_MEMORY
@_NPROC
@_CEILING
@_OBJECTIVE
@_PRECISIONS
@_OUTPUT
def profile(task: Path, **options: Any) -> None:
    """Measure samples per second over batch sizes, and where it saturates.

    With --precisions, ways to compute stand side by side, each with what it does to the loss.
    """
    _refuse_torchrun("profile")
    _check_output(options)
    from . import api
    from .arm import parse_arms

    shared = {
        name: options[name] for name in ("budget", "device", "memory_limit", "headroom", "max_batch_size", "objective")
    }
    with _progress(options) as listen:
        if options["precisions"]:
            if options["nproc"] > 1:
                raise SettingError("--precisions compares ways to compute in one process: leave out --nproc or it")
            arms = api.profile_arms(task, parse_arms(options["precisions"]), on_progress=listen, **shared)
        else:
            curve = api.profile(task, nproc=options["nproc"], on_progress=listen, **shared)
    if options["precisions"]:
        from .arms import compared
        from .render.terminal import print_arms

        _show(compared(arms), print_arms, options)
        if not any(arm.curve for arm in arms):
            sys.exit(_FOUND_NOTHING)
        return
    from .render.terminal import print_profile

    _show(curve.to_json(), print_profile, options)


@cli.command(cls=_Command)
@_option(
    "--models",
    cls=_Several,
    belongs=lambda word: True,
    metavar="NAME ...",
    help="Standard models by name, or task files; all standard ones by default.",
)
@_PRECISIONS
@_option("--quick", is_flag=True, help="Less time for each; on a processor fp32 alone and less memory.")
@_DEVICE
@_MEMORY
@_CEILING
@_OBJECTIVE
@_option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write the report as a page.")
@_OUTPUT
def bench(**options: Any) -> None:
    """Measure what this device does with models that everybody knows, and write a report to compare.

    The report goes to --output, by default benchmarks/results/<device>/<date>.json, after each model. The same command
    goes on where an earlier one was ended.
    """
    _refuse_torchrun("bench")
    if options["html"] is not None:
        from .files import check_writable

        check_writable(options["html"])
    from . import api

    try:
        with _progress(options) as listen:
            report, path = api.bench(
                options["models"],
                precisions=options["precisions"],
                quick=options["quick"],
                device=options["device"],
                memory_limit=options["memory_limit"],
                headroom=options["headroom"],
                max_batch_size=options["max_batch_size"],
                objective=options["objective"],
                output=options["output"],
                command=_command(),
                on_progress=listen,
            )
    except KeyboardInterrupt:
        _fail("interrupted. What was done is in the report's file: the same command goes on from there", _INTERRUPTED)
    _show_bench(report, path, options)


@cli.command("find-lr")
@_TASK
@_option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Default: the baseline's.")
@_option("--rule", type=click.Choice(["min/10", "steepest", "valley"]), default="min/10", help="How it is read.")
@_option("--steps", type=click.IntRange(min=_FEWEST_STEPS), default=100, help="Optimizer steps, one at each rate.")
@_option("--seed", type=int, default=0, help="Of the initialisation and the data order.")
@_DEVICE
@_OUTPUT
def find_lr(task: Path, **options: Any) -> None:
    """Run a learning-rate range test on a model of its own."""
    _refuse_torchrun("find-lr")
    _check_output(options)
    from . import api

    with _progress(options) as listen:
        curve = api.find_lr(
            task,
            batch_size=options["batch_size"],
            rule=options["rule"],
            steps=options["steps"],
            seed=options["seed"],
            device=options["device"],
            on_progress=listen,
        )
    from .render.terminal import print_lr

    _show(curve.to_json(), print_lr, options)


@cli.command()
@click.argument("files", type=click.Path(path_type=Path), metavar="REPORT.json...", nargs=-1, required=True)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print it as Markdown.")  # tune's variable names a file
@_option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write it as a page of its own.")
@_OUTPUT
def report(files: tuple[Path, ...], as_markdown: bool, html: Path | None, **options: Any) -> None:
    """Show a stored report again; compare reports of "bench", each with the first."""
    if as_markdown and (options["as_json"] or options["output"] is not None):
        raise click.UsageError("--markdown prints Markdown alone: leave out --json and --output, or --markdown")
    _check_output(options)
    if html is not None:
        from .files import check_writable

        check_writable(html)
    from .render.stored import read_reports

    result, document = read_reports(files)
    if html is not None:
        from .files import write_whole
        from .render.html import to_html

        write_whole(html, to_html(document))
    if as_markdown:
        from .render.markdown import to_markdown

        click.echo(to_markdown(document))
    else:
        _show_document(result, document, options)


@cli.command()
@_OUTPUT
def doctor(**options: Any) -> None:
    """Say which devices there are, what is known about them, and why a fact is missing."""
    _check_output(options)
    import dataclasses

    from .devices import describe_devices
    from .render.terminal import print_devices

    devices = describe_devices()
    _show(
        [dataclasses.asdict(device) for device in devices], lambda _, console: print_devices(devices, console), options
    )


def _show_bench(report: BenchReport, path: Path, options: Mapping[str, Any]) -> None:
    """The overview on stdout; the report is in its file already."""
    from .render.bench_content import bench_document, bench_summary
    from .render.terminal import print_document

    if options["html"] is not None:
        from .files import write_whole
        from .render.html import to_html

        write_whole(options["html"], to_html(bench_document(report)))
    summary = bench_summary(report)
    _show(report.to_json(), lambda _, console: print_document(summary, console), {**options, "output": None})
    click.echo(f"The report is in {path}: `autobatch report {shlex.quote(str(path))}` shows all of it", err=True)


@contextmanager
def _on_each_rank() -> Iterator[bool]:
    """Whether this process is the one that answers: rank 0 of those that torchrun started, connected meanwhile.

    What all of them raise is told by rank 0; where a rank is lost, by each that is left.
    """
    from .ranks import started_by_torchrun

    if not started_by_torchrun(os.environ):
        yield True
        return
    from .exchange import ranks_of_torchrun, wait_for_all  # with torch, which a single process leaves to its workers

    with ranks_of_torchrun() as rank:
        try:
            yield rank == 0
        except AutobatchError as error:
            # When the first rank fails, torchrun ends the others: each gives its message and exit code all the same.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if isinstance(error, RankLost):
                raise
            wait_for_all()
            if rank == 0:
                raise
            sys.exit(_exit_code(error))


def _refuse_torchrun(command: str) -> None:
    from .ranks import started_by_torchrun

    if started_by_torchrun(os.environ):
        raise SettingError(
            f"{command} starts its own processes (tune, profile: --nproc N); it was started by torchrun as one of "
            f"{os.environ['WORLD_SIZE']}. Start it without torchrun; max-batch is what runs under it"
        )


def _check_output(options: Mapping[str, Any]) -> None:
    if options["output"] is not None:
        from .files import check_writable

        check_writable(options["output"])


def _show_report(report: Report, options: Mapping[str, Any]) -> None:
    from .render.content import report_document

    _show_document(report.to_json(), report_document(report), options)


def _show_document(result: Any, document: Document, options: Mapping[str, Any]) -> None:
    from .render.terminal import print_document

    _show(result, lambda _, console: print_document(document, console), options)


def _show(result: Any, draw: Callable[[Any, Console], None], options: Mapping[str, Any]) -> None:
    """The result on stdout, drawn or as JSON, and in the output file where one was asked for."""
    text = json.dumps(result, indent=1, allow_nan=False)
    if options["output"] is not None:
        from .files import write_whole

        write_whole(options["output"], text + "\n")
    if options["as_json"]:
        click.echo(text)
        return
    from rich.console import Console

    draw(result, Console())


@contextmanager
def _progress(
    options: Mapping[str, Any], budget_s: float | None = None, how_to_resume: str | None = None
) -> Iterator[Listener]:
    """A listener that draws on stderr: live on a terminal, plain lines off it, nothing when quiet.

    Where Ctrl-C ends the command, the last finding of each stage is told. In the memory stage that is the largest batch
    that ran, since nothing below it is tried again.
    """
    from rich.console import Console

    from .render.live import live_progress

    found: dict[str, str] = {}
    try:
        with live_progress(Console(stderr=True), budget_s=budget_s, quiet=options["quiet"]) as listen:

            def heard(progress: Progress) -> None:
                words = _FINDINGS.get(progress.stage)
                if words is not None and words in progress.text and progress.predicted_s is None:
                    found[progress.stage] = progress.text
                listen(progress)

            yield heard
    except KeyboardInterrupt:
        if not found:
            raise
        lines = [f"{stage}: {text}" for stage, text in found.items()]
        if how_to_resume is not None:
            lines.append(f"Go on with: {how_to_resume}")
        _fail("\n".join(["interrupted. Found so far:", *lines]), _INTERRUPTED)
    except StorageError as error:
        if how_to_resume is None:
            raise
        raise StorageError(f"{error}. What was found is kept: make room, then go on with: {how_to_resume}") from None


def _command() -> str:
    """What was typed, as it can be typed again but for the password of a database."""
    return shlex.join(["autobatch", *(shown_url(word) for word in sys.argv[1:])])


def _process_age_s() -> float:
    """Seconds since this process was started, so that the budget pays for its start-up; 0 where nobody says."""
    try:
        with open("/proc/self/stat", encoding="ascii") as stat, open("/proc/uptime", encoding="ascii") as uptime:
            started_ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
            return max(0.0, float(uptime.read().split()[0]) - started_ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def _terminated(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _exit_code(error: AutobatchError) -> int:
    if isinstance(error, NoValidResult):
        return _FOUND_NOTHING
    return _FAILED if isinstance(error, WorkerDied | StorageError) else _REFUSED


def main() -> None:
    """Run the command line; the exit code says how it went (see the README)."""
    signal.signal(signal.SIGTERM, _terminated)
    noted = {"debug": False}
    try:
        cli(standalone_mode=False, obj=noted)
        sys.exit(0)
    except (click.Abort, KeyboardInterrupt):  # click turns the one into the other in some places
        _fail("interrupted, before anything was found", _INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except AutobatchError as error:
        if noted["debug"]:
            _fail_with_traceback(_exit_code(error))
        _fail(str(error), _exit_code(error))
    except Exception as error:  # noqa: BLE001  # the last boundary: a bug of ours is told as one
        if noted["debug"]:
            _fail_with_traceback(_FAILED)
        kind = type(error).__name__
        _fail(
            f"{kind}: {error}\nThis is a bug in autobatch, not in your task. Run again with --debug for all of it.", 1
        )


def _fail_with_traceback(code: int) -> NoReturn:
    import traceback

    traceback.print_exc()
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"autobatch: {message}", err=True)
    sys.exit(code)
