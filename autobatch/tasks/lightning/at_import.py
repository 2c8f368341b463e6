"""Files that would train a model as they are imported: they are refused before anything of them is run."""

from __future__ import annotations

import ast
from pathlib import Path

from ...errors import TaskError


def refuse_training_in(path: Path) -> None:
    """Refuse a file whose top level calls the `fit` of a Trainer.

    Raises:
        TaskError: it does, with the line.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if "lightning" not in text or ".fit(" not in text:
        return
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # told when it is run
        return
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.If):
            continue
        for node in filter(_trains, ast.walk(statement)):
            raise TaskError(
                f"{path.name} trains as it is imported (line {statement.lineno}, {ast.unparse(node)[:60]}): put that "
                'under `if __name__ == "__main__":`'
            )


def _trains(node: ast.AST) -> bool:
    """Whether it is a call of a Trainer's `fit`, by its name: a scaler of scikit-learn's has a `fit` too."""
    is_fit = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fit"
    return is_fit and "trainer" in ast.unparse(node.func.value).lower()  # type: ignore[attr-defined]
