"""Frames in which a demonstrator waits: nothing moves, and what it does next hangs on a clock that no policy sees.

A hand that pushes against a joint's end until its controller gives up looks the same in every one of those frames, and
most of them say "push": a policy that sees one frame at a time pushes for ever. Kim et al. 2024 (OpenVLA) leave out
frames whose action is nearly zero; here it is the outcome that counts, since such a push is no small action.
"""

from __future__ import annotations

import numpy as np

from embodied.data.cache import FrameCache
from embodied.data.rotations import axis_angle_to_matrix
from embodied.schema import ACTION, ACTION_DIM, STATE, STATE_DIM

STEP, TURN, FINGER = 0.003, 0.03, 0.0004  # m, rad, m to the next frame, below which nothing moves
EXTENT = 0.008  # m: a wait stays within a box of this size
LEAST = 4  # frames
RAMP = 8  # frames that a gripper takes to follow a new command: no wait


def still_frames(cache: FrameCache) -> np.ndarray:
    """Which frames of a cache (N,) bool belong to a wait; never an episode's last one.

    ValueError when its states and actions are not those of the schema. Waits of fewer than LEAST frames are none.
    """
    for key, numbers in ((STATE, STATE_DIM), (ACTION, ACTION_DIM)):
        found = cache.specs[key].shape if key in cache.specs else None
        if found != (numbers,):
            raise ValueError(
                f"{cache.folder}: skip_still needs {numbers} numbers of {key}, got {found}: set data.skip_still=false"
            )
    state, action = cache.rows(STATE), cache.rows(ACTION)
    still = np.zeros(int(cache.episodes.length.sum()), bool)
    for start, length in zip(cache.episodes.start, cache.episodes.length, strict=True):
        frames = np.arange(start, start + length)
        still[frames] = waits(state.take(frames), action.take(frames))
    return still


def waits(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The same of one episode: states (T, 8) and actions (T, 7) -> (T,) bool."""
    rotations = axis_angle_to_matrix(states[:, 3:6].astype(np.float64))
    traces = np.einsum("tij,tij->t", rotations[1:], rotations[:-1])
    moved = np.linalg.norm(np.diff(states[:, :3], axis=0), axis=1) >= STEP
    moved |= np.arccos(np.clip((traces - 1) / 2, -1, 1)) >= TURN
    moved |= np.abs(np.diff(states[:, 6:], axis=0)).max(axis=1) >= FINGER
    for change in np.flatnonzero(np.diff(actions[:, -1])) + 1:
        moved[change : change + RAMP] = True
    still = np.r_[~moved, False]
    edges = np.flatnonzero(np.diff(np.r_[False, still, False].astype(int)))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        box = np.ptp(states[first : end + 1, :3], axis=0)
        if end - first < LEAST or box.max() > EXTENT:
            still[first:end] = False
    return still
