"""Calling a reader's function, and how the verdict on it is said."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]
GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"


class CheckFailed(AssertionError):
    """A wrong answer; the message names the kind of mistake."""

    def _render_traceback_(self) -> list[str]:
        return [f"{RED}✗ {self}{PLAIN}"]


class Stop(Exception):
    """The reader's function can't be judged further; the message says why."""


def require_signature(answer: Function, inputs: dict[str, Any]) -> None:
    """Raise Stop unless the function can be called with the inputs by position."""
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):  # some built-in functions don't tell
        return
    try:
        signature.bind(*inputs.values())
    except TypeError as error:
        called = ", ".join(inputs)
        raise Stop(f"it takes {signature}, but is called with ({called})") from error


def call(function: Function, inputs: tuple[Any, ...], of: Function) -> Any:
    """Call it; an exception becomes a message about the reader's function `of`."""
    try:
        return function(*inputs)
    except NotImplementedError as error:
        raise Stop("it is not written yet") from error
    except Exception as error:
        raise Stop(f"it raised {_words(error)}{_where(error, of)}") from error


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__} ({text[:160]})" if text else type(error).__name__


def _where(error: Exception, of: Function) -> str:
    code = getattr(of, "__code__", None)
    frames = traceback.walk_tb(error.__traceback__)
    lines = [
        n
        for frame, n in frames
        if code and frame.f_code.co_filename == code.co_filename
    ]
    if not lines:
        return ""
    text = linecache.getline(code.co_filename, lines[-1]).strip()
    return f" at `{text}`" if text else ""


def coloured(line: str) -> str:
    """The line in green inside a notebook, plain elsewhere."""
    try:
        from IPython import get_ipython
    except ImportError:
        return line
    return line if get_ipython() is None else f"{GREEN}{line}{PLAIN}"
