"""The constant tensors of a run: those that its caller gives and those that a table brings along."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .table import Table
from .transforms import DATA_MEAN, ONES


def missing_anchors(table: Table) -> set[str]:
    """Anchors that a caller must give: neither constants of the table nor supplied by every run."""
    return set(table.anchors) - {ONES} - table.constants.keys()


def anchor_values(table: Table, like: Tensor, anchors: Mapping[str, Tensor] | None = None) -> dict[int, Tensor]:
    """Values 1..A of a run: what is given, over the table's own constants.

    Parameters
    ----------
    table : Table
    like : Tensor (B, ...)
        A state of the run: device, dtype and shape of the values.
    anchors : mapping, optional
        By name; tensors that broadcast to `like`.

    Raises
    ------
    ValueError
        Anchors that are missing or that the table has not, or of a shape that does not fit.
    """
    given = dict(anchors or {})
    missing, extra = missing_anchors(table) - given.keys(), given.keys() - set(table.anchors)
    if missing or extra:
        raise ValueError(
            f"method {table.method!r} takes anchors {list(table.anchors)}; "
            f"missing {sorted(missing)}, unknown {sorted(extra)}{how_to_give(table) if missing else ''}"
        )
    values = {}
    for place, name in enumerate(table.anchors, start=1):
        tensor = given[name] if name in given else _constant(table, name)
        try:
            values[place] = tensor.to(device=like.device, dtype=like.dtype).expand(like.shape)
        except RuntimeError:
            shape = tuple(tensor.shape)
            raise ValueError(
                f"anchor {name!r} has shape {shape}, which does not fit x_init {tuple(like.shape)}"
            ) from None
    return values


def how_to_give(table: Table) -> str:
    """In brackets, for messages: where the anchors come from that the table lacks."""
    if DATA_MEAN not in missing_anchors(table):
        return ""
    if table.provenance:
        return (
            " (it was fitted with a mean for each condition: give anchors={'data_mean': the mean of each sample's "
            "condition}, such as calibrate.learned.start_prediction finds)"
        )
    return " (or afs=AnalyticStart(mean=...))"


def _constant(table: Table, name: str) -> Tensor:
    return torch.ones(()) if name == ONES else torch.as_tensor(np.asarray(table.constants[name]))
