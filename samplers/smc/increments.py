"""Numbers of a table that weights need, on the host before the first call: how far each row gets along the path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ..guidance.protocol import row_step
from ..nodes import Level
from ..table import Table

_SAME = 1e-9
_BACK = 0.5 * math.log(2.0) + 1e-6  # the most that EDM's churn goes back in log-SNR/2


def spans(table: Table) -> list[tuple[Level, Level]]:
    """For every row, the levels between which it makes progress: equal where it makes none.

    Stages of a step share its progress, and steps back (churn) are left out of it.

    Raises
    ------
    ValueError
        The table goes back along the path by more than churn does.
    """
    levels = [*(row.level for row in table.rows), table.end]
    marks = [levels[0]]
    for level in levels[1:]:
        if level.lam < marks[-1].lam - _BACK:
            raise ValueError(
                f"method {table.method!r} goes back from noise {marks[-1].noise:g} to noise {level.noise:g}; weights "
                "follow the path, choose a method without such jumps"
            )
        marks.append(level if level.lam > marks[-1].lam else marks[-1])
    return list(pairwise(marks))


def half_diffusion(start: Level, end: Level) -> float:
    """½∫g² between two levels, for the noising process dx = f x dt + g dW of the path; infinite from signal 0.

    With g² = −d(noise²)/dt + 2·noise²·d log(signal)/dt; exact where signal is constant, on variance-preserving paths
    and on the linear one, and by the trapezoidal rule in log(signal) elsewhere.
    """
    (a, s), (b, r) = (start.signal, start.noise), (end.signal, end.noise)
    if a == b:
        return 0.5 * (s**2 - r**2)
    if a == 0.0:
        return math.inf
    ratio = math.log(b / a)
    if _unit(a**2 + s**2, b**2 + r**2):
        return ratio
    if _unit(a + s, b + r):
        return ratio - (b - a)
    return 0.5 * (s**2 - r**2) + 0.5 * (s**2 + r**2) * ratio


def _unit(*values: float) -> bool:
    return all(abs(value - 1.0) < _SAME for value in values)


def noise_scales(table: Table, between: Sequence[tuple[Level, Level]]) -> list[float]:
    """ζ² of every row: the variance it adds over that of the noising process; 0 for deterministic rows.

    Raises
    ------
    ValueError
        A row is not one whole step from its call, see `guidance.row_step`.
    """
    noisy = [any(z >= 0 for z in row.noises) for row in table.rows]
    fresh = [row_step(table, k).fresh if noisy[k] else 0.0 for k in range(len(between))]
    whole = [2.0 * half_diffusion(start, end) for start, end in between]
    return [0.0 if f == 0.0 else f**2 / w for f, w in zip(fresh, whole, strict=True)]
