"""The command `diffedu`: doctor, figures, train, notation.

Each command imports what it needs when it is called, so that `diffedu doctor` starts
even where the rest is broken.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def run_doctor(args: argparse.Namespace) -> int:
    """Report on this machine."""
    from . import doctor

    return doctor.main(fast=args.fast)


def run_notation(args: argparse.Namespace) -> int:
    """Print the notation table."""
    from .notation import markdown, notation

    if args.markdown:
        sys.stdout.write(markdown())
    else:
        notation()
    return 0


def run_figures(args: argparse.Namespace) -> int:
    """List all figures, or make those that are named."""
    from .figures import list_figures, make_figures

    if not args.ids and not args.all:
        return list_figures()
    ids = [] if args.all else args.ids
    return make_figures(ids, args.out, args.budget, args.device)


def run_train(args: argparse.Namespace) -> int:
    """Train a shipped network again."""
    from .recipes import main

    return main(args.names, args.device, args.fresh)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="diffedu", description="Learn diffusion models by building every piece."
    )
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("doctor", help="what this machine has, what is missing")
    one.add_argument("--fast", action="store_true", help="skip the speed reading")
    one.set_defaults(run=run_doctor)
    one = commands.add_parser("notation", help="print the notation table")
    one.add_argument("--markdown", action="store_true", help="as docs/notation.md")
    one.set_defaults(run=run_notation)
    if _exists("figures"):
        _add_figures(commands)
    if _exists("recipes"):
        one = commands.add_parser("train", help="train a shipped network again")
        one.add_argument("names", nargs="*", help="recipes; none lists them")
        one.add_argument("--device", default="", help="cpu, cuda or mps")
        one.add_argument("--fresh", action="store_true", help="resume nothing")
        one.set_defaults(run=run_train)
    return top


def _exists(module: str) -> bool:
    """Whether diffedu has a module of that name."""
    return importlib.util.find_spec(f"diffedu.{module}") is not None


def _add_figures(commands: argparse._SubParsersAction) -> None:
    """Add the command `figures`."""
    one = commands.add_parser("figures", help="list the figures, or draw some again")
    one.add_argument("ids", nargs="*", help="such as F14; none lists them")
    one.add_argument("--all", action="store_true", help="draw every figure")
    one.add_argument("--out", type=Path, default=Path("figures"), help="the folder")
    one.add_argument("--budget", choices=["laptop", "full"], default="laptop")
    one.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    one.set_defaults(run=run_figures)


def _meant(argv: Sequence[str], known: Sequence[str]) -> str:
    """What to say about an unknown command; "" if it is known or an option."""
    if not argv or argv[0].startswith("-") or argv[0] in known:
        return ""
    near = difflib.get_close_matches(argv[0], known, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else f"accepted: {', '.join(known)}"
    return f'command "{argv[0]}" is unknown; {hint}'


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words of the command line; None takes the program's own.

    Returns:
        the exit status: 0 if all is well, 1 if something is wrong, 2 if the words are.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    top = parser()
    known = [
        name
        for action in top._actions
        if isinstance(action, argparse._SubParsersAction)
        for name in action.choices
    ]
    complaint = _meant(words, known)
    if complaint:
        print(f"diffedu: {complaint}", file=sys.stderr)
        return 2
    args = top.parse_args(words)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"diffedu: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
