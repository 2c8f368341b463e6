"""Run the user's file as a module, and report its errors in the user's own frames.

A task file runs under a module name that contains its path. Pickle stores classes and functions by module name, and a
spawned DataLoader worker imports that name in a process that has never run the file: it imports
`autobatch.tasks.task_file` first, which registers a finder that decodes the path from the name.
"""

from __future__ import annotations

import difflib
import importlib.machinery
import importlib.util
import linecache
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType

from ..errors import AutobatchError, TaskError, without_table
from .libraries import is_installed
from .script_hint import command_hint

# Without a `__path__`, the import system would look for no module below this one. There is no folder to look in either.
__path__: list[str] = []

_PREFIX = f"{__name__}."
_PACKAGE = Path(__file__).resolve().parents[1]


def module_name(path: Path) -> str:
    """The importable name of the task file at `path`: its stem for readers, its path in hexadecimal for the finder."""
    stem = re.sub(r"\W", "_", path.stem)
    return f"{_PREFIX}{stem}_{path.as_posix().encode().hex()}"


class _TaskFileLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source at every load.

    Python's cached bytecode is keyed by size and whole seconds, so a file that was edited twice within a second could
    run in its old version. Also, users do not expect a `__pycache__` from a tool that reads their file.
    """

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        # The folder stays on the path: functions of the file import their siblings when they are called.
        folder = str(Path(self.path).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        super().exec_module(module)


class _TaskFileFinder(MetaPathFinder):
    """Finds the modules named by `module_name`, in any process that has imported this module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        encoded = fullname.removeprefix(_PREFIX).rpartition("_")[2]
        if not fullname.startswith(_PREFIX) or not re.fullmatch(r"(?:[0-9a-f]{2})+", encoded):
            return None
        file = bytes.fromhex(encoded).decode()
        return importlib.util.spec_from_file_location(fullname, file, loader=_TaskFileLoader(fullname, file))


sys.meta_path.append(_TaskFileFinder())


def existing_file(path: Path) -> Path:
    """The path of the task file that the user named.

    Raises:
        TaskError: there is no such file, or it is no Python file. The message suggests the most similar one.
    """
    if path.is_dir():
        raise TaskError(f"a task is a Python file; {path} is a folder: pass the file in it, as in {path / 'model.py'}")
    if path.suffix != ".py":
        raise TaskError(f"a task is a Python file whose name ends in .py; found {path}")
    if not path.exists():
        near = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        raise TaskError(f"there is no file {path}{f'; did you mean {path.parent / close[0]}?' if close else ''}")
    return path.resolve()


def run_file(path: Path) -> ModuleType:
    """The module that the file at `path` defines, run anew at each call, with its folder on `sys.path`.

    Its `__name__` is not `__main__`, so code under `if __name__ == "__main__":` does not run. Two task files that
    import different siblings of the same name do not work in one process: Python keeps one module per name.

    Raises:
        TaskError: the file cannot be compiled, or raises or exits while it runs.
    """
    name = module_name(path)
    sys.modules.pop(name, None)
    linecache.checkcache(str(path))
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        # A SyntaxError's own lines are the file, the line and a caret. It has no frames in the broken file.
        where = Path(error.filename).name if error.filename else path.name
        error_text = "".join(traceback.format_exception_only(error)).rstrip()
        raise TaskError(f"{where} is not valid Python:\n{error_text}") from error
    except SystemExit as error:
        hint = command_hint(path)
        raise TaskError(
            f"{path.name} exited while it was imported (exit code {error.code!r}): a task file only defines functions; "
            f'put what runs training, and its command line, under `if __name__ == "__main__":`\n'
            f"{user_frames(error, path.parent)}" + ("" if hint is None else f"\n{hint}")
        ) from error
    except AutobatchError as error:
        raise TaskError(f"{path.name}: {error}") from error
    except Exception as error:
        raise blame("the import", error, path) from error


def is_users(filename: str, root: Path | None) -> bool:
    """Whether a frame in `filename` is the user's: in their folder, or at least not in a library."""
    if filename.startswith("<"):
        return not filename.startswith(("<frozen", "<eval_with_key>", "<__array_function__"))
    file = Path(filename).resolve()
    if file.is_relative_to(_PACKAGE) or "site-packages" in file.parts or "dist-packages" in file.parts:
        return False
    if root is not None and file.is_relative_to(root):
        return True
    return not is_installed(file)


def _exception_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"it called sys.exit({error.code!r}), itself or through argparse: a function of a task must return, or "
            'raise an error; what reads a command line belongs under `if __name__ == "__main__":`'
        )
    return without_table("".join(traceback.format_exception_only(error)).rstrip())


def user_frames(error: BaseException, root: Path | None) -> str:
    """The frames of `error` in the user's code, innermost last, as Python prints them; empty if there are none."""
    frames = traceback.extract_tb(error.__traceback__)
    return "".join(traceback.format_list([frame for frame in frames if is_users(frame.filename, root)])).rstrip()


def line_of(function: object) -> str:
    """` (file.py, line 12)`, the place of a function or method; empty if it is not written in Python."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if isinstance(code, CodeType) else ""


def blame(what: str, error: BaseException, path: Path | None) -> TaskError:
    """The error to raise when the user's code failed: what failed, in which file, why, and their frames.

    Args:
        what: the part of the task, such as "model()".
        error: what it raised. If autobatch raised it on purpose, its message is enough, and no frames follow.
        path: the task file; None for a task made in code.
    """
    whose = f"{what} of {path.name}" if path else what
    if isinstance(error, AutobatchError):
        return TaskError(f"{whose}: {error}")
    cause = f"caused by {_exception_line(error.__cause__)}" if error.__cause__ else ""
    parts = (f"{whose} failed: {_exception_line(error)}", cause, user_frames(error, path.parent if path else None))
    return TaskError("\n".join(filter(None, parts)))


def gather(where: str, problems: Iterable[str]) -> TaskError:
    """One error that lists all `problems` of `where`, numbered if there are several."""
    listed = list(problems)
    if len(listed) == 1:
        return TaskError(f"{where}: {listed[0]}")
    lines = (
        f"  {number}. {problem.replace(chr(10), chr(10) + '     ')}" for number, problem in enumerate(listed, start=1)
    )
    return TaskError("\n".join((f"{where} has {len(listed)} problems:", *lines)))
