"""`embodied COMMAND [hydra overrides]`: one small module a command, imported when it runs.

A command module has a docstring (its help: the first line is shown in the list), `run(arguments: list[str]) -> int`,
and, when it has settings, `register(registry)` for its config dataclass. Positional paths: only compare, value, data.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import sys
from pathlib import Path

NAMES = (
    "demo",
    "doctor",
    "train",
    "collect",
    "data",
    "export",
    "evaluate",
    "evaluate-world",
    "compare",
    "ablation",
    "value",
    "serve",
    "node",
    "robot-sim",
    "record",
    "replay",
    "bench",
    "results",
)  # fmt: skip
COMMANDS = {name: f"embodied.cli.{name.replace('-', '_')}" for name in NAMES}


def main(arguments: list[str] | None = None) -> int:
    """The console command. Exit status 0: done; 1: the work failed; 2: the command line or a file was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see `embodied --help`"
        print(f"embodied: unknown command {name!r}: {hint}", file=sys.stderr)
        return 2
    if rest and rest[0] in ("-h", "--help"):
        print(_docstring(COMMANDS[name]))
        return 0
    try:
        return importlib.import_module(COMMANDS[name]).run(rest)
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("EMBODIED_DEBUG"):
            raise
        print(f"embodied {name}: {error}\n(EMBODIED_DEBUG=1 shows where)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nembodied {name}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = ["usage: embodied COMMAND [hydra overrides]", ""]
    lines += [f"  {name:<14} {_docstring(module).splitlines()[0]}" for name, module in COMMANDS.items()]
    return "\n".join([*lines, "", "`embodied COMMAND --help` says more about one."])


def _docstring(module: str) -> str:
    """The module's docstring, read without importing it: help stays instant."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"command module {module} should exist: reinstall embodied-stack")
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
