"""Defaults for the options, from `[tool.autobatch]` in the nearest pyproject.toml."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import SettingError


class ConfiguredGroup(click.Group):
    """A group whose commands take their defaults from `[tool.autobatch]` of the nearest pyproject.toml."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        kwargs.setdefault("default_map", {})
        context = super().make_context(*args, **kwargs)
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            here = Path.cwd()
        except FileNotFoundError:
            raise SettingError("the current folder has been removed: change to one that exists") from None
        settings = _read_settings(here)
        known = {
            # An option without a variable has no key either, above all those that delete.
            name: {option.name for option in command.params if isinstance(option, click.Option) and option.envvar}
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
        if os.access(folder, os.X_OK) and file.is_file():
            try:
                tables = tomllib.loads(file.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise SettingError(f"{file} cannot be read: {error}") from None
            except OSError as error:
                raise SettingError(f"{file} cannot be read: {error.strerror}") from None
            table = tables.get("tool", {}).get("autobatch", {})
            if not isinstance(table, Mapping):
                raise SettingError(f"[tool.autobatch] of {file} must be a table; got {type(table).__name__}")
            aliases = {"json": "as_json"}
            return {aliases.get(key, key.replace("-", "_")): value for key, value in table.items()}
    return {}
