"""The border to the network: labels, dtype, guidance, conversion and the count of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import PREDICTIONS, coefficients, unknown_name

from .combine import affine
from .guidance import Guidance
from .table import Row, Table

Model = Callable[..., Tensor]


class Border:
    """Calls the network for the rows of one table and converts its output to each row's form.

    Everything a row needs (time label, the two conversion coefficients) is computed before the first call.

    Parameters
    ----------
    model : callable (x, t, **kwargs) -> output, t of shape (B,)
    table : Table
    x : Tensor
        Any tensor of the run: gives device, the network's dtype and the dtype of t.
    prediction : {"data", "noise", "velocity", "v", "score"}
    guidance : Guidance, optional

    Raises
    ------
    ValueError
        Unknown prediction, or a row at which the network's output does not determine what the row stores
        (noise prediction at signal 0, velocity without rates).
    """

    def __init__(
        self,
        model: Model,
        table: Table,
        x: Tensor,
        prediction: str = "data",
        guidance: Guidance | None = None,
    ) -> None:
        self.model = model
        self.guidance = guidance
        self.network_dtype = x.dtype
        self.evaluations = 0
        self.conversions = row_conversions(table, prediction)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.labels = torch.tensor([row.level.time for row in table.rows], dtype=wide, device=x.device)

    def __call__(
        self, index: int, row: Row, query: Tensor, kwargs: Mapping[str, Any], source: Tensor | None = None
    ) -> Tensor:
        """Evaluate the network at `query` for row `index`; returns the output in the row's form."""
        x = query.to(self.network_dtype)
        t = self.labels[index].expand(len(x))
        guided = self.guidance
        raw = self.model(x, t, **kwargs) if guided is None else guided(self.model, x, t, dict(kwargs))
        self.evaluations += 1
        if self.evaluations == 1:
            _check_output(raw, x)
        on_query, on_output = self.conversions[index]
        output = affine(query, raw.to(query.dtype), on_query, on_output)
        if on_query != 0.0 and row.level.anchor and source is not None:
            output = output.add(source, alpha=-on_query * row.level.anchor)
        return output


def row_conversions(table: Table, prediction: str) -> list[tuple[float, float]]:
    """For every row (c_x, c_out) with stored form = c_x·query + c_out·output; (0, 1) for rows without a call.

    Raises
    ------
    ValueError
        Unknown prediction, or a row at which the prediction does not determine what the row stores.
    """
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    return [_conversion(row, k, table, prediction) for k, row in enumerate(table.rows)]


def _conversion(row: Row, index: int, table: Table, prediction: str) -> tuple[float, float]:
    if not row.calls_network:
        return 0.0, 1.0
    level = row.level
    try:
        return coefficients(level.signal, level.noise, level.signal_rate, level.noise_rate, prediction, row.form)
    except ValueError as error:
        raise ValueError(
            f"method {table.method!r} stores the {row.form} at row {index} (time {level.time:g}, signal "
            f"{level.signal:g}, noise {level.noise:g}), which a {prediction} prediction cannot give "
            f"there: {error}"
        ) from None


def _check_output(raw: Any, x: Tensor) -> None:
    if not isinstance(raw, Tensor):
        raise TypeError(
            f"the model must return a tensor, got {type(raw).__name__}; wrap diffusers networks "
            "with from_diffusers(...)"
        )
    if raw.shape != x.shape:
        raise ValueError(f"the model returned shape {tuple(raw.shape)} for an input of shape {tuple(x.shape)}")
