"""The two inner loops of grasp planning, compiled: points in boxes, and what a pair of fingers would touch.

numba comes with robosuite. Arrays are float64 unless said; units are metres.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BINS = 64  # of a sweep along x
FACING = 0.2  # of a normal along the closing direction


@njit(cache=True)
def inside_boxes(points: np.ndarray, rotation: np.ndarray, offset: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(K,): does one of points (N, 3), seen in the axes `rotation` (3, 3), lie in one of boxes (B, 2, 3) put at offset
    (K, 3, in these axes)?"""
    low, high, from_low, to_high = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for axis in range(3):
        from_low[axis], to_high[axis] = boxes[:, 0, axis].min(), boxes[:, 1, axis].max()
        low[axis], high[axis] = offset[:, axis].min() + from_low[axis], offset[:, axis].max() + to_high[axis]
    local, first, cell = _sorted_along_x(points, rotation, low, high)
    found = np.zeros(len(offset), np.bool_)
    for k in range(len(offset)):
        for b in range(len(boxes) - 1, -1, -1):
            x0, x1 = offset[k, 0] + boxes[b, 0, 0], offset[k, 0] + boxes[b, 1, 0]
            y0, y1 = offset[k, 1] + boxes[b, 0, 1], offset[k, 1] + boxes[b, 1, 1]
            z0, z1 = offset[k, 2] + boxes[b, 0, 2], offset[k, 2] + boxes[b, 1, 2]
            start = first[max(0, min(int((x0 - low[0]) / cell), BINS - 1))]
            end = first[max(0, min(int((x1 - low[0]) / cell), BINS - 1)) + 1]
            for n in range(start, end):
                x, y, z = local[n, 0], local[n, 1], local[n, 2]
                if x0 < x < x1 and y0 < y < y1 and z0 < z < z1:
                    found[k] = True
                    break
            if found[k]:
                break
    return found


@njit(cache=True)
def _sorted_along_x(
    points: np.ndarray, rotation: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Points in the axes `rotation` and between low and high, by cells along x; the first of each cell; cell size."""
    cell = max((high[0] - low[0]) / BINS, 1e-9)
    kept, count = np.empty((len(points), 3)), 0
    counts = np.zeros(BINS + 1, np.int64)
    for n in range(len(points)):
        inside = True
        for axis in range(3):
            value = 0.0
            for i in range(3):
                value += points[n, i] * rotation[i, axis]
            kept[count, axis] = value
            inside = inside and low[axis] < value < high[axis]
        if inside:
            counts[min(int((kept[count, 0] - low[0]) / cell), BINS - 1) + 1] += 1
            count += 1
    first = np.cumsum(counts)
    place, result = first[:-1].copy(), np.empty((count, 3))
    for n in range(count):
        bin_of = min(int((kept[n, 0] - low[0]) / cell), BINS - 1)
        result[place[bin_of]] = kept[n]
        place[bin_of] += 1
    return result, first, cell


@njit(cache=True)
def touched(
    local: np.ndarray,
    normal: np.ndarray,
    part: np.ndarray,
    around: np.ndarray,
    depths: np.ndarray,
    pad: np.ndarray,
    touch: float,
    edge: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What fingers touch that close along x near around (K, 3) at depths (D,) below the top of what is between them.

    local (N, 3), normal (N,; its x), part (N,; int): the surface in the hand's axes. pad: reach, half width in y, and
    z range of the pads. touch, edge: how far behind the outermost point still counts as contact, and for seams.
    Returns span (K, D, 3): the grip's z, lowest and highest x (x empty: inf, -inf); sums (K, D, 2, 4): at the upper and
    the lower x, of normal, 1, y, z over the points touched; seam (K, D): contact with several parts on one side.
    """
    reach, half, bottom, top = pad
    span = np.empty((len(around), len(depths), 3))
    sums = np.zeros((len(around), len(depths), 2, 4))
    seam = np.zeros((len(around), len(depths)), np.bool_)
    for k in range(len(around)):
        off = np.abs(local[:, 1] - around[k, 1])
        near = np.abs(local[:, 0] - around[k, 0]) < reach
        column, wide = np.flatnonzero(near & (off < half)), np.flatnonzero(near & (off < half + edge))
        surface = local[column, 2].min() if len(column) else np.inf
        for d in range(len(depths)):
            low, high = surface + depths[d] + bottom, surface + depths[d] + top
            ends = _ends(local, column, low, high)
            span[k, d, 0], span[k, d, 1], span[k, d, 2] = surface + depths[d], ends[0], ends[1]
            for side in range(2):
                sign = 1.0 - 2.0 * side
                end = ends[1 - side]
                _add(sums[k, d, side], local, normal, column, sign, end, touch, low, high)
                seam[k, d] |= _several(local, part, wide, sign, end, edge, low - edge, high + edge)
    return span, sums, seam


@njit(cache=True)
def _ends(local: np.ndarray, column: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Lowest and highest x of the points of a column between low and high."""
    left, right = np.inf, -np.inf
    for n in column:
        if low < local[n, 2] < high:
            left, right = min(left, local[n, 0]), max(right, local[n, 0])
    return left, right


@njit(cache=True)
def _add(
    total: np.ndarray,
    local: np.ndarray,
    normal: np.ndarray,
    column: np.ndarray,
    sign: float,
    end: float,
    touch: float,
    low: float,
    high: float,
) -> None:
    """Adds normal, 1, y, z of the points within `touch` of the end in x, on the side `sign`, to total (4,)."""
    for n in column:
        if low < local[n, 2] < high and sign * (end - local[n, 0]) < touch and sign * normal[n] > FACING:
            total[0] += normal[n]
            total[1] += 1.0
            total[2] += local[n, 1]
            total[3] += local[n, 2]


@njit(cache=True)
def _several(
    local: np.ndarray,
    part: np.ndarray,
    column: np.ndarray,
    sign: float,
    end: float,
    edge: float,
    low: float,
    high: float,
) -> bool:
    """Do the points within `edge` of the end in x belong to several parts? Flush boxes can catch on a pad's edges."""
    first = -1
    for n in column:
        if low < local[n, 2] < high and sign * (end - local[n, 0]) < edge:
            if first >= 0 and first != part[n]:
                return True
            first = part[n]
    return False
