"""Checks of a LeRobot folder, v3.0 or v2.x. Nothing stops at the first problem; files are opened one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embodied.data.lerobot_meta import LeRobotMeta, read_meta
from embodied.data.lerobot_reader import TableFiles, column_array
from embodied.data.validation.columns import check_columns, check_text
from embodied.data.validation.report import Kind, Report
from embodied.data.video import Video, VideoError

BLOCK = 64


def validate_lerobot(root: Path, decode: bool = True) -> Report:
    """All problems of the data set. decode: read every frame, not only the index of each video."""
    report = Report(str(root))
    try:
        meta = read_meta(root)
    except ValueError as error:
        report.add(Kind.unsafe_path if "refused" in str(error) else Kind.metadata, str(error))
        return report
    report.episodes, report.frames = len(meta.episodes), sum(int(row["length"]) for row in meta.episodes)
    _check_totals(report, meta)
    tables = TableFiles(meta)
    for position, row in enumerate(meta.episodes):
        _check_row(report, meta, position, row)
        _check_table(report, meta, tables, position)
    _check_videos(report, meta, decode)
    report.problems.sort(key=lambda p: (-1 if p.episode is None else p.episode, p.frame or 0))
    return report


def _check_totals(report: Report, meta: LeRobotMeta) -> None:
    found = {"total_episodes": len(meta.episodes), "total_frames": report.frames, "total_tasks": len(meta.tasks)}
    for key, value in found.items():
        if key in meta.info and meta.info[key] != value:
            report.add(
                Kind.count_mismatch, f"meta/info.json: {key} is {meta.info[key]}, the tables have {value}", key=key
            )


def _check_row(report: Report, meta: LeRobotMeta, position: int, row: Mapping[str, Any]) -> None:
    number, length = int(row["episode_index"]), int(row["length"])
    if number != position:
        report.add(Kind.metadata, f"it should be number {position}, its row says {number}", position)
    if length <= 0:
        report.add(Kind.count_mismatch, f"length should be positive, got {length}", position)
    if meta.is_v3 and row["dataset_to_index"] - row["dataset_from_index"] != length:
        span = f"{row['dataset_from_index']} to {row['dataset_to_index']}"
        report.add(Kind.count_mismatch, f"length is {length}, but it spans frames {span}", position)
    check_text(report, position, meta.task_of(row))


def _check_table(report: Report, meta: LeRobotMeta, tables: TableFiles, position: int) -> None:
    length = int(meta.episodes[position]["length"])
    try:
        rows = tables.rows(position)
    except ValueError as error:
        report.add(Kind.unsafe_path if "refused" in str(error) else Kind.unreadable, str(error), position)
        return
    if len(rows) != length:
        message = f"the table has {len(rows)} rows, metadata say {length}"
        report.add(Kind.count_mismatch, message, position, min(len(rows), length))
    columns = {}
    for key, spec in meta.numeric_columns().items():
        if key not in rows.column_names:
            report.add(Kind.metadata, f"column {key!r} of meta/info.json is not in the table", position, key=key)
            continue
        try:
            columns[key] = column_array(rows[key], spec)
        except ValueError as error:
            report.add(Kind.count_mismatch, f"{key}: {error}", position, key=key)
    check_columns(report, position, len(rows), columns, meta.fps)
    if "task_index" in rows.column_names and len(rows):
        unknown = set(rows["task_index"].to_pylist()) - set(meta.tasks)
        if unknown:
            report.add(Kind.missing_text, f"task_index {sorted(unknown)[0]} names no task", position, 0, "task_index")


def _check_videos(report: Report, meta: LeRobotMeta, decode: bool) -> None:
    for camera in meta.video_keys:
        files: dict[Path, list[int]] = {}
        for position, row in enumerate(meta.episodes):
            try:
                files.setdefault(meta.video_file(row, camera), []).append(position)
            except (ValueError, KeyError) as error:
                report.add(Kind.unsafe_path if "refused" in str(error) else Kind.metadata, str(error), position)
        for path, positions in files.items():
            _check_video(report, meta, camera, path, positions, decode)


def _check_video(
    report: Report, meta: LeRobotMeta, camera: str, path: Path, positions: list[int], decode: bool
) -> None:
    try:
        video = Video(path)
    except VideoError as error:
        for position in positions:
            report.add(Kind.truncated_video, str(error), position, 0, camera)
        return
    with video:
        rate = 1 / float(np.median(np.diff(video.times))) if len(video) > 1 else meta.fps
        if abs(rate / meta.fps - 1) > 0.01:
            for position in positions:
                message = f"{camera} runs at {rate:.3g} frames per second, metadata say {meta.fps:g}"
                report.add(Kind.wrong_fps, message, position, 0, camera)
            return
        wanted = sum(int(meta.episodes[position]["length"]) for position in positions)
        if len(video) > wanted:
            message = f"{camera}: {path.name} holds {len(video)} frames, its episodes use {wanted}"
            report.add(Kind.longer_video, message, positions[-1], key=camera)
        for position in positions:
            _check_frames(report, meta, video, camera, position, decode)


def _check_frames(report: Report, meta: LeRobotMeta, video: Video, camera: str, position: int, decode: bool) -> None:
    """Every frame has a picture at its time, and the picture can be decoded."""
    row = meta.episodes[position]
    length = int(row["length"])
    times = meta.video_start(row, camera) + np.arange(length) / meta.fps
    own = video.times
    nearest = np.abs(own[np.clip(np.searchsorted(own, times - 0.5 / meta.fps), 0, len(own) - 1)] - times)
    missing = np.flatnonzero(nearest > 0.5 / meta.fps)
    if len(missing):
        message = f"{camera} has no picture for {len(missing)} of {length} frames: the video is short"
        report.add(Kind.truncated_video, message, position, int(missing[0]), camera)
        times = times[: int(missing[0])]
    if not decode or not len(times):
        return
    numbers = video.numbers_at(times, 0.5 / meta.fps)
    for start in range(0, len(numbers), BLOCK):
        try:
            video.read(numbers[start : start + BLOCK])
        except VideoError as error:
            frame = start if error.frame is None else error.frame - int(numbers[0])
            report.add(Kind.truncated_video, str(error), position, frame, camera)
            return
