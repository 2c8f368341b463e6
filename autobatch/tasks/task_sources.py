"""The sources of a task file: hashes of the file and of the modules beside it that it imports."""

from __future__ import annotations

import hashlib
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any


def source_digest(path: Path) -> str:
    """SHA-256 over `source_hashes`: it changes if the task file, or a module beside it that it imports, changes.

    It does not depend on the folder.
    """
    lines = (f"{name}\0{digest}\n" for name, digest in source_hashes(path).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of the task file and of all modules in its folder that it imports, by their path in that folder.

    Imports are read from the text, including those inside functions. A module that is imported by a computed name is
    not found, nor is one outside the folder. Nothing is run. A file that is not valid Python stands alone.
    """
    folder = path.parent.resolve()
    finder = ModuleFinder(path=[str(folder)])
    files = {path.resolve()}
    try:
        finder.run_script(str(path))
        modules: dict[str, Any] = dict(finder.modules)
        files |= {Path(module.__file__).resolve() for module in modules.values() if module.__file__}
    except (SyntaxError, ValueError, UnicodeDecodeError):  # in it, or in one that it imports: reported when it is run
        pass
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_relative_to(folder)
    }
