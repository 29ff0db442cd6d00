"""`trio-ray`: every module of `commands/` is a command, every package in it a group of commands.

A command is imported only when it is run. The help of all commands shows the first line of each module's docstring,
which is read from its source.
"""

from __future__ import annotations

import argparse
import ast
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from trio_ray import commands
from trio_ray.commands._frame import EXIT_CODES, run_in_frame
from trio_ray.errors import TrioRayError

SHELLS = ("bash", "zsh", "tcsh")


class WrongUsage(TrioRayError):
    """The command line names no command, or gives an option that the command does not take."""

    exit_code = 2


class Parser(argparse.ArgumentParser):
    """A parser that ends with one sentence, as every other error of a command does."""

    def error(self, message: str) -> NoReturn:
        """Raise `WrongUsage`."""
        raise WrongUsage(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. What stopped it is one sentence on standard error."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    given = sys.argv[1:] if arguments is None else arguments

    def run() -> int:
        chosen = make_parser(given).parse_args(given)
        status: int = chosen.run(chosen)
        return status

    return run_in_frame(run)


def make_parser(given: Sequence[str] | None) -> Parser:
    """The parser of a command line. It knows the names of all commands, and the options of the one that is given; with
    None those of all, which takes as long as to import them.
    """
    parser = Parser(
        prog="trio-ray",
        description="Pruned visual prefixes of LLaVA-NeXT, computed once on a Ray cluster and stored for good.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, help="show the version and exit")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=SHELLS,
        help="print a script that completes this program's command lines in a shell, and exit; for bash: "
        "trio-ray --print-completion bash > ~/.local/share/bash-completion/completions/trio-ray",
    )  # fmt: skip
    _add_commands(parser, commands.__name__, list(commands.__path__), given)
    return parser


def _add_commands(parser: argparse.ArgumentParser, package: str, path: list[str], given: Sequence[str] | None) -> None:
    """Add the commands of a package; with their options where one is `given`, or all are wanted (None)."""
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for found in pkgutil.iter_modules(path):
        if found.name.startswith("_"):  # what commands share
            continue
        name, module = found.name.replace("_", "-"), f"{package}.{found.name}"
        description = _docstring(module)
        command = subparsers.add_parser(
            name, help=description.partition("\n")[0], description=description, epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if given is not None and given[:1] != [name]:
            continue
        imported = import_module(module)
        if found.ispkg:
            _add_commands(command, module, list(imported.__path__), None if given is None else given[1:])
        else:
            imported.add_arguments(command)
            command.set_defaults(run=imported.run)


def _docstring(module: str) -> str:
    """The docstring of a module that need not be imported for it."""
    spec = find_spec(module)
    source = spec.loader.get_source(module) if spec and spec.loader else ""  # type: ignore[attr-defined]
    return ast.get_docstring(ast.parse(source)) or ""


class _PrintCompletion(argparse.Action):
    """Needs the options of all commands, which the parser of a command line does not have."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, shell: object, *_: object) -> None:
        import shtab

        print(shtab.complete(make_parser(None), str(shell)))
        parser.exit()


class _ShowVersion(argparse.Action):
    """`action="version"` wants the version before it knows that it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from trio_ray import __version__

        print(f"trio-ray {__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
