"""Calls of a module's hooks."""

from __future__ import annotations

from typing import Any

from .library import overrides


def call_hook(module: Any, root: str, name: str, *args: Any) -> Any:
    """Call a hook where the module has one of its own, so that what it logs is logged there."""
    if not overrides(module, root, name):
        return None
    before, module._current_fx_name = module._current_fx_name, name
    try:
        return getattr(module, name)(*args)
    finally:
        module._current_fx_name = before


def end_backward(module: Any, root: str) -> None:
    """The hook after a backward pass, as soon as something of ours is called after it."""
    now = module.trainer._now
    if now.waits_for_backward:
        now.waits_for_backward = False
        call_hook(module, root, "on_after_backward")
