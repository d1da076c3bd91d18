"""Leaving out operating points that no plan needs.

A point is dominated if another of the same group is no worse in every column and, of equal ones, comes first. With
columns in which less is better (work per resource, time that nothing changes, minus the value, ...), any plan that
uses a dominated point is no better than the same plan with its dominator: values and bounds stay what they were.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from solvers.problem import Floats, Ints

BLOCK: Final = 256  # points compared with all of their group at once: memory stays below BLOCK x group x columns


def prune(columns: Floats, groups: Ints) -> npt.NDArray[np.bool_]:
    """Return (J,) which points to keep.

    columns: (J, C), less is better in each, nan never (ValueError). groups: (J,) any integers; points of different
    groups are not compared. O(sum of squares of group sizes x C).
    """
    columns = np.asarray(columns, dtype=np.float64)
    if columns.ndim != 2 or groups.shape != (len(columns),):
        raise ValueError(f"columns {columns.shape} and groups {np.shape(groups)} do not belong together")
    if np.isnan(columns).any():
        raise ValueError("columns hold nan")
    keep = np.ones(len(columns), dtype=bool)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        keep[rows] = ~_beaten(columns[rows])
    return keep


def _beaten(columns: Floats) -> npt.NDArray[np.bool_]:
    """(K,) whether some other row is <= everywhere, and < somewhere or earlier."""
    beaten = np.zeros(len(columns), dtype=bool)
    place = np.arange(len(columns))
    for start in range(0, len(columns), BLOCK):
        block = columns[start : start + BLOCK]  # (B, C)
        no_worse = np.all(columns[:, None, :] <= block[None, :, :], axis=2)  # (K, B) row k against block row b
        equal = np.all(columns[:, None, :] == block[None, :, :], axis=2)
        earlier = place[:, None] < place[None, start : start + BLOCK]
        beaten[start : start + BLOCK] = np.any(no_worse & (~equal | earlier), axis=0)
    return beaten
