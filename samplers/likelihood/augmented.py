"""Tables that carry the logarithm of the density beside the state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..border import Border
from ..loop import run
from ..nodes import Level
from ..table import Table
from .divergence import Divergence


class Carried(NamedTuple):
    """A state (B, ...) at a table's end and log |det d end/d start| (B, columns), one column for each probe."""

    state: Tensor
    log_volume: Tensor


def carry_volume(
    table: Table,
    border: Border,
    x: Tensor,
    divergence: Divergence,
    kwargs: Mapping[str, Any],
    *,
    progress: bool = False,
) -> Carried:
    """Run a deterministic table on the state and the scalar together: the scalar has the order of the method.

    A table whose rows store noise steps x/signal in noise/signal, one of data rows x/noise in signal/noise, one of
    velocity rows x in time. In that variable the scalar has the divergence for its slope, and as it is multiplied by
    what the state is multiplied by from step to step, it is one more element of the state.

    Raises
    ------
    ValueError
        A stochastic table, anchors, coefficients for each coordinate, or rows of several kinds.
    """
    form = _form(table)
    levels = iter([row.level for row in table.rows if row.calls_network])
    shape, size = x.shape[1:], x[0].numel()

    def augmented(z: Tensor, t: Tensor) -> Tensor:
        level = next(levels)
        state = z[:, :size].reshape(-1, *shape)
        value, trace = divergence(lambda s: border.at(level, form, s, kwargs), state)
        return torch.cat([value.flatten(1), _unit(level, form) * trace.to(value.dtype)], dim=1)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), divergence.columns)], dim=1)
    end = run(table, augmented, start, prediction=form, progress=progress)
    assert isinstance(end, Tensor)
    first, last = _unit(table.start, form), _unit(table.end, form)
    grown = size * (torch.tensor(last / first, dtype=torch.float64).log().item() if form != "velocity" else 0.0)
    return Carried(end[:, :size].reshape(-1, *shape), end[:, size:] / last + grown)


def _unit(level: Level, form: str) -> float:
    """What a state is divided by to give the stepped variable."""
    return {"velocity": 1.0, "noise": level.signal, "data": level.noise}[form]


def _form(table: Table) -> str:
    forms = {row.form for row in table.rows if row.calls_network}
    reason = None
    if table.stochastic:
        reason = "draws noise"
    elif table.anchors or table.has_arrays:
        reason = "has anchors or coefficients for each coordinate"
    elif any(row.estimate is not None for row in table.rows):
        reason = "begins with an analytic step"
    elif len(forms) != 1:
        reason = f"stores {' and '.join(sorted(forms))} in its rows"
    elif 0.0 in (_unit(table.start, next(iter(forms))), _unit(table.end, next(iter(forms)))):
        reason = "begins or ends where its variable is infinite"
    if reason is not None:
        raise ValueError(
            f"table {table.method!r} {reason}; the density is carried by deterministic methods of one kind of row, "
            "such as dpm++, ipndm, heun, euler or runge-kutta, between levels that are neither pure noise nor clean"
        )
    return next(iter(forms))
