"""python -m lerobot_policy_prts export CHECKPOINT FOLDER [KEY=VALUE ...]   a checkpoint as a LeRobot policy folder
python -m lerobot_policy_prts eval ARGUMENTS                             lerobot-eval, with LIBERO set up offline

KEY: n_action_steps, live_images (mirrored, upright). `eval` finds LIBERO's assets as `embodied evaluate` does, where
hf-libero by itself asks a question and downloads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["export"] and len(arguments) >= 3:
        return _export(arguments[1:])
    if arguments[:1] == ["eval"]:
        return _evaluate(arguments[1:])
    print(__doc__, file=sys.stderr)
    return 2


def _export(arguments: list[str]) -> int:
    from lerobot_policy_prts.configuration_prts import Images
    from lerobot_policy_prts.folder import export

    settings: dict[str, Any] = {}
    for argument in arguments[2:]:
        key, _, value = argument.partition("=")
        if key == "n_action_steps" and value.isdigit():
            settings[key] = int(value)
        elif key == "live_images" and value in Images.__members__:
            settings[key] = Images[value]
        else:
            print(f"expected n_action_steps=N or live_images=mirrored|upright, got {argument!r}", file=sys.stderr)
            return 2
    try:
        print(export(Path(arguments[0]), Path(arguments[1]), **settings))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _evaluate(arguments: list[str]) -> int:
    from sim.libero_setup import import_libero

    import_libero()
    from lerobot.scripts.lerobot_eval import main as lerobot_eval

    sys.argv = ["lerobot-eval", *arguments]
    lerobot_eval()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
