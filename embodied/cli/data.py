"""Looks at, checks, imports, caches and shows data sets.

    embodied data info PATH                        format, cameras, columns, episodes, instructions
    embodied data validate PATH [json=FILE]        truncated videos, counts, NaN, time jumps, ... by episode and frame
    embodied data validate PATH repair=true out=DIR   writes what it leaves out, then the data set without it
    embodied data import PATH out=DIR              any format -> LeRobotDataset v3 in the one item format
    embodied data cache PATH out=DIR size=128      decodes once into memory-mapped frames for training
    embodied data stats PATH [out=stats.json]      exact mean, std, min, max and quantiles
    embodied data show PATH out=FILE.html [rerun=FILE.rrd]   episodes as videos with state and action plots

PATH is a LeRobot v3.0 or v2.x folder, DROID's packages, LIBERO's *.hdf5, a frame cache, a ROS 2 bag or a folder of
bags (MCAP), or a name under EMBODIED_DATA.
size=128 | size=[192,320] | size=[]     frames of the cache; fit=pad|crop|stretch for another shape
select.suites=[..] select.split=val select.success=true select.with_task=true select.limit=10
source.mirrored=true                    cameras stored mirrored left to right (LIBERO's sets on the hub)
source.contract=FILE source.task="..."  what a bag's topics are (a recording of `embodied node` says it itself)
source.rename={image: observation.images.image}   source.angles=euler_xyz   source.tool_offset=0.16
decode=false                            validate without decoding every frame; warnings=true drops warned episodes too
codec=av1                               import: encode videos again, a key frame every 2 (default: copied unchanged)
episodes=[0,5]                          which to show (the first of each instruction, at most 12)
Exit status of validate: 1 when there are errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embodied.registry import Registry

if TYPE_CHECKING:
    from embodied.data.commands import DataConfig

ACTIONS = ("info", "validate", "import", "cache", "stats", "show")


def register(registry: Registry) -> None:
    from embodied.data.commands import DataConfig

    registry.schema(None, "data_schema", DataConfig)


def run(arguments: list[str]) -> int:
    from embodied.data import commands

    action, config = _parse(arguments)
    return getattr(commands, f"run_{action}")(config)


def _parse(arguments: list[str]) -> tuple[str, DataConfig]:
    """`ACTION PATH key=value ...`; the path may also be given as path=..."""
    import difflib

    from embodied.config import compose_config, to_dataclass

    if not arguments or arguments[0] not in ACTIONS:
        got = repr(arguments[0]) if arguments else "nothing"
        near = difflib.get_close_matches(arguments[0], ACTIONS, n=1) if arguments else []
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"expected one of {', '.join(ACTIONS)}, got {got}: {hint}see `embodied data --help`")
    action, *rest = arguments
    if rest and "=" not in rest[0]:
        rest[0] = f"path={_quoted(rest[0])}"
    return action, to_dataclass(compose_config("data", rest))


def _quoted(path: str) -> str:
    """A path as a Hydra string, whatever characters it has."""
    return "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"
