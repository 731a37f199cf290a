"""Validates any data set that `open_source` opens."""

from __future__ import annotations

from pathlib import Path

from embodied.data.cache import FrameCache
from embodied.data.cache_build import verify_checksums
from embodied.data.importers.droid import DroidSource
from embodied.data.open_source import Format, SourceOptions, detect_format, open_source, resolve_path
from embodied.data.source import Source
from embodied.data.validation.columns import check_columns, check_text
from embodied.data.validation.lerobot import validate_lerobot
from embodied.data.validation.report import Kind, Report
from embodied.data.video import VideoError

RATE_TOLERANCE = 0.01


def validate(path: str | Path, options: SourceOptions | None = None, decode: bool = True) -> Report:
    """All problems of a data set. decode: read every frame, not only what the files say of themselves."""
    options = options or SourceOptions()
    found = resolve_path(path)
    if (found / "meta" / "info.json").is_file():
        return validate_lerobot(found, decode)
    kind = detect_format(found) if options.format is Format.auto else options.format
    try:
        source = open_source(found, options)
    except ValueError as error:
        report = Report(str(found))
        report.add(Kind.metadata, str(error))
        return report
    report = Report(str(found), len(source.episodes), sum(info.length for info in source.episodes))
    if kind is Format.cache:
        _check_checksums(report, FrameCache(found))
    for position in range(len(source.episodes)):
        _check_episode(report, source, position, decode)
    return report


def _check_checksums(report: Report, cache: FrameCache) -> None:
    for position, key in verify_checksums(cache):
        report.add(Kind.checksum, f"{key} is not what was written: build the cache again", position, key=key)


def _check_episode(report: Report, source: Source, position: int, decode: bool) -> None:
    info = source.episodes[position]
    check_text(report, position, info.task)
    try:
        columns = source.read_columns(position)
    except (ValueError, OSError) as error:
        report.add(Kind.unreadable, str(error), position)
        return
    check_columns(report, position, info.length, columns, source.fps)
    for camera in source.cameras:
        try:
            if isinstance(source, DroidSource):
                _check_droid_video(report, source, position, camera)
            if decode and (frames := len(source.read_frames(position, camera))) != info.length:
                message = f"{camera} has {frames} frames, the columns {info.length}"
                report.add(Kind.count_mismatch, message, position, min(frames, info.length), camera)
        except VideoError as error:
            report.add(Kind.truncated_video, str(error), position, error.frame or 0, camera)
        except (ValueError, OSError) as error:
            report.add(Kind.unreadable, str(error), position, key=camera)


def _check_droid_video(report: Report, source: DroidSource, position: int, camera: str) -> None:
    (frames, rate), states = source.video_facts(position, camera), source.episodes[position].length
    if abs(rate / source.fps - 1) > RATE_TOLERANCE:
        message = f"{camera} runs at {rate:g} frames per second, the first episode at {source.fps:g}"
        report.add(Kind.wrong_fps, message, position, 0, camera)
    if frames > states:
        message = f"{camera} has {frames} frames for {states} states: the rest is left out"
        report.add(Kind.longer_video, message, position, states, camera)
    elif frames < states:
        raise VideoError(f"{camera} has {frames} frames for {states} states: the video is short", frames)
