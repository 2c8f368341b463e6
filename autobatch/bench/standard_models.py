"""The task files of the standard models: well-known networks, to compare devices with.

They are ordinary task files, which `load_task` loads like a user's. AUTOBATCH_BENCH_SIZE=small in the environment of
the process that loads one makes it small enough for a CPU.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelsNotFound

# An installed package has them beside its modules; pyproject.toml puts them there.
_INSTALLED = Path(__file__).parents[1] / "standard_models"
_CHECKOUT = Path(__file__).parents[2] / "benchmarks" / "models" / "standard"


def standard_models() -> dict[str, Path]:
    """The task file of each standard model by the model's name, in the order of the names.

    Raises:
        ModelsNotFound: neither the installed package nor a checkout around it has them.
    """
    for folder in (_INSTALLED, _CHECKOUT):
        files = sorted(folder.glob("[!_]*.py"))
        if files:
            return {file.stem: file for file in files}
    raise ModelsNotFound(
        f"the task files of the standard models are in neither {_INSTALLED} nor {_CHECKOUT}: install autobatch-tuner "
        "again, or run from a whole checkout"
    )
