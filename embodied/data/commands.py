"""The work behind `embodied data ACTION`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from embodied.data.open_source import CacheSource, SourceOptions, detect_format, open_source, resolve_path
from embodied.data.resize import Fit
from embodied.data.source import Selection, Source
from embodied.data.video_writer import VideoCodec
from embodied.io import write_json


@dataclass
class DataConfig:
    """path: the data set. out: what is written. size: one number or height and width, empty for the source's own.

    cameras: which to cache (empty: all). decode, repair, warnings, keep_share, json: for validate; keep_share is the
    smallest part of an episode worth keeping when it is cut. codec: encode videos again (null: copy what can be).
    episodes, rerun: for show.
    """

    path: str = MISSING
    out: str | None = None
    source: SourceOptions = field(default_factory=SourceOptions)
    select: Selection = field(default_factory=Selection)
    size: Any = 128
    fit: Fit = Fit.pad
    cameras: list[str] = field(default_factory=list)
    codec: VideoCodec | None = None
    decode: bool = True
    json: str | None = None
    repair: bool = False
    warnings: bool = False
    keep_share: float = 0.5
    episodes: list[int] = field(default_factory=list)
    rerun: str | None = None


def run_info(config: DataConfig) -> int:
    source = open_source(config.path, config.source)
    chosen = [source.episodes[i] for i in config.select.apply(source.episodes)]
    lengths = [info.length for info in chosen] or [0]
    frames = sum(lengths)
    kind = detect_format(resolve_path(config.path)).value
    print(f"{source.name}: {kind}, {len(chosen)} episodes, {frames} frames, {source.fps:g} per second")
    print(f"  duration   {frames / source.fps / 60:.1f} minutes; episodes of {min(lengths)} to {max(lengths)} frames")
    for key, (height, width) in source.cameras.items():
        print(f"  camera     {key} {height} x {width}")
    for key, spec in source.columns.items():
        print(f"  column     {key} {spec.dtype} {list(spec.shape)} {', '.join(spec.names or ())}".rstrip())
    outcomes = Counter({True: "success", False: "failure", None: "unknown"}[info.success] for info in chosen)
    print(f"  outcome    {', '.join(f'{count} {name}' for name, count in outcomes.items())}")
    for (suite, task), count in Counter((info.suite, info.task) for info in chosen).items():
        print(f"  {count:5d} x    {suite + ': ' if suite else ''}{task or '(no instruction)'}")
    return 0


def run_validate(config: DataConfig) -> int:
    from embodied.data.validation.repair import plan_repair, write_repaired
    from embodied.data.validation.validate import validate

    report = validate(config.path, config.source, config.decode)
    if config.json:
        write_json(Path(config.json), report.to_json())
    for problem in report.problems:
        print(problem.line())
    warned = len(report.problems) - len(report.errors)
    print(f"{report.path}: {report.episodes} episodes, {len(report.errors)} errors, {warned} warnings")
    if not config.repair:
        return 1 if report.errors else 0
    out = Path(_needed(config.out, "out=DIR, where the repaired data set goes"))

    def reopen() -> Source:
        return open_source(config.path, config.source, lenient=True)

    lengths = [info.length for info in reopen().episodes]
    repair = plan_repair(report, lengths, config.keep_share, config.warnings)
    write_repaired(reopen, repair, report.path, out, _progress("episodes written"))
    print(f"{out}: {len(repair.keep)} episodes kept, {len(repair.left_out)} dropped or cut (see {out}.repair.json)")
    return 0


def run_import(config: DataConfig) -> int:
    from embodied.data.importers.convert import import_source

    out = Path(_needed(config.out, "out=DIR"))
    source = open_source(config.path, config.source)
    keep = {i: source.episodes[i].length for i in config.select.apply(source.episodes)}
    if not keep:
        raise ValueError(f"{config.path}: the selection keeps no episode of {len(source.episodes)}: widen select.*")
    import_source(source, out, keep, config.codec, _progress("episodes imported"))
    print(f"{out}: {len(keep)} episodes, {sum(keep.values())} frames as LeRobotDataset v3")
    return 0


def run_cache(config: DataConfig) -> int:
    from embodied.data.cache_build import CacheConfig, build_cache

    out = Path(_needed(config.out, "out=DIR"))
    settings = CacheConfig(_size(config.size), config.fit, list(config.cameras), config.select)
    cache = build_cache(open_source(config.path, config.source), out, settings, _progress("episodes decoded"))
    sizes = ", ".join(f"{key} {height} x {width}" for key, (height, width) in cache.cameras.items())
    print(f"{out}: {len(cache.episodes)} episodes, {cache.frames} frames; {sizes}")
    return 0


def run_stats(config: DataConfig) -> int:
    source = open_source(config.path, config.source)
    statistics = dataset_statistics(source, config.select.apply(source.episodes))
    for key, values in statistics.items():
        print(key)
        for name in ("mean", "std", "min", "max", "q01", "q99"):
            numbers = " ".join(f"{number:10.4f}" for number in np.asarray(values[name], np.float64).ravel())
            print(f"  {name:<5} {numbers}")
    if config.out:
        write_json(Path(config.out), statistics)
        print(config.out)
    return 0


def run_show(config: DataConfig) -> int:
    from embodied.data.show.page import show_page

    source = open_source(config.path, config.source)
    chosen = list(config.episodes) or _one_of_each(source, config.select.apply(source.episodes))
    outside = [i for i in chosen if not 0 <= i < len(source.episodes)]
    if outside:
        raise ValueError(f"{config.path} has episodes 0 to {len(source.episodes) - 1}, not {outside[0]}")
    if config.rerun:
        from embodied.data.show.rerun_export import export_rerun

        export_rerun(source, chosen, Path(config.rerun))
        print(config.rerun)
    if config.out or not config.rerun:
        out = Path(config.out or f"{source.name}.html")
        show_page(source, chosen, out)
        print(out)
    return 0


def dataset_statistics(source: Source, episodes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Exact statistics of columns and images over these episodes, in the form of LeRobot's meta/stats.json."""
    from embodied.data.statistics import column_statistics, image_histogram, image_statistics

    if isinstance(source, CacheSource) and len(episodes) == len(source.episodes):
        return {key: value.to_json() for key, value in source.cache.statistics.items()}
    parts: dict[str, list[np.ndarray]] = {}
    histograms: dict[str, np.ndarray] = {}
    for i in episodes:
        for key, values in source.read_columns(i).items():
            parts.setdefault(key, []).append(values)
        for camera in source.cameras:
            histograms[camera] = histograms.get(camera, 0) + image_histogram(source.read_frames(i, camera))
    frames = sum(source.episodes[i].length for i in episodes)
    result = {key: column_statistics(values) for key, values in parts.items() if values[0].dtype.kind in "fiu"}
    result |= {key: image_statistics(histogram, frames) for key, histogram in histograms.items()}
    return {key: value.to_json() for key, value in result.items()}


def _one_of_each(source: Source, episodes: Sequence[int], limit: int = 12) -> list[int]:
    """The first episode of every instruction, then others, at most `limit`."""
    firsts = {source.episodes[i].task: i for i in reversed(episodes)}
    rest = [i for i in episodes if i not in firsts.values()]
    return [*sorted(firsts.values()), *rest][:limit]


def _size(value: Any) -> list[int]:
    """128, [192, 320] or nothing. ValueError for anything else."""
    sizes = [value] if isinstance(value, int) else list(value or [])
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in sizes):
        raise ValueError(f"size should be a number or [height,width], got {value!r}")
    return sizes


def _needed(value: str | None, what: str) -> str:
    if not value:
        raise ValueError(f"add {what} to the command")
    return value


def _progress(what: str) -> Any:
    """Counts on one line of stderr when somebody watches."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
