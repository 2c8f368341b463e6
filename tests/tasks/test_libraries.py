"""What a process has imported of what is installed: all of it, in order, and nothing of the user's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from autobatch.tasks.libraries import NO_LIBRARIES, Libraries, is_installed, libraries_of

WATCHED = """
import os, sys, threading, time
sys.path[:0] = [{installed!r}, {users!r}]
from autobatch.tasks.libraries import Watch
os.environ["REMOVED"] = "1"
watch = Watch()
{code}
found = watch.libraries()
print([name for name in found.modules if name.startswith(("lib", "users"))])
print(found.environment)
"""


def watched(tmp_path: Path, code: str) -> list[str]:
    """What is found in a new process after `code`, with an installed package `lib` and a module `users` at hand."""
    package = tmp_path / "site-packages" / "lib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import late, early\n")
    (package / "late.py").write_text("from . import early\n")
    (package / "early.py").touch()
    (tmp_path / "users.py").touch()
    script = WATCHED.format(installed=str(package.parent), users=str(tmp_path), code=code)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return run.stdout.splitlines()


def test_installed_modules_are_found_in_the_order_in_which_their_imports_ended(tmp_path: Path) -> None:
    assert watched(tmp_path, "import users, lib")[0] == "['lib.early', 'lib.late', 'lib']"


def test_variables_that_were_set_changed_or_removed_are_found(tmp_path: Path) -> None:
    found = watched(tmp_path, 'os.environ["LIB_THREADS"] = "1"; del os.environ["REMOVED"]')
    assert found == ["[]", "(('REMOVED', None), ('LIB_THREADS', '1'))"]


def test_nothing_is_shared_of_a_process_where_an_import_started_a_thread(tmp_path: Path) -> None:
    code = "import lib; threading.Thread(target=time.sleep, args=(5,), daemon=True).start()"
    assert watched(tmp_path, code) == ["[]", "()"]


def test_a_module_under_another_name_and_one_without_a_file_are_left_out(tmp_path: Path) -> None:
    code = (
        "import lib.late, types; sys.modules['lib_alias'] = lib; sys.modules['lib_made'] = types.ModuleType('lib_made')"
    )
    assert watched(tmp_path, code)[0] == "['lib.early', 'lib.late', 'lib']"


def test_loading_goes_on_in_silence_after_what_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (
        ("raises", "1 / 0"),
        ("exits", "raise SystemExit(3)"),
        ("works", "import os\nseen = os.environ['X']"),
    ):
        (tmp_path / f"libraries_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("X", "before")
    monkeypatch.setenv("Y", "before")
    modules = ("libraries_raises", "libraries_exits", "libraries_no_such", "libraries_works")
    Libraries(modules, (("X", "set"), ("Y", None), ("Z", None))).load()
    assert sys.modules.pop("libraries_works").seen == "set"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("module", ["os", "json", "torch", "click"])
def test_the_standard_library_and_packages_are_installed(module: str) -> None:
    __import__(module)
    assert is_installed(Path(str(sys.modules[module].__file__)).resolve())


def test_a_users_file_is_not_installed() -> None:
    assert not is_installed(Path(__file__).resolve())


def test_the_libraries_of_things_are_those_of_their_classes_and_bases() -> None:
    class Mine(nn.Linear):
        """Of nobody's library."""

    assert libraries_of([Mine(1, 1), 3, None]).modules == ("torch.nn.modules.module", "torch.nn.modules.linear")
    assert libraries_of([]) == NO_LIBRARIES
