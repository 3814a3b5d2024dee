"""The border to the network: labels, dtype, guidance, conversion, thresholding and the count of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from pathline.interpolants import PREDICTIONS, coefficients, unknown_name

from .combine import affine
from .guidance import Guidance, Place, StepMap, check_guidance, guided_output
from .nodes import Level
from .table import Row, Table
from .thresholding import Thresholding

Model = Callable[..., Tensor]
Pair = tuple[float, float]
T = TypeVar("T")


class Border:
    """Calls the network at any level of a path and converts its output to any form.

    Parameters
    ----------
    model : callable (x, t, **kwargs) -> output, t of shape (B,)
    x : Tensor
        Any tensor of the run: gives device, the network's dtype and the dtype of t.
    prediction : {"data", "noise", "velocity", "v", "score"}
    guidance : Guidance, optional
    thresholding : callable, optional
        Applied to the data prediction, after guidance and before anything is stored; see `thresholding`.

    Attributes
    ----------
    evaluations : int
        Network calls so far; a guided call counts once.
    forwards : int
        Forward passes so far of all branches, one for each sample of the batch.
    memory : dict of name -> Tensor (B, ...)
        What a guidance keeps for each sample, see `guidance.Place`.

    Raises
    ------
    ValueError
        Unknown prediction, a thresholding that cannot be called, or a guidance that cannot act here.
    """

    table: Table | None = None

    def __init__(
        self,
        model: Model,
        x: Tensor,
        prediction: str = "data",
        guidance: Guidance | None = None,
        thresholding: Thresholding | None = None,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise unknown_name("prediction", prediction, PREDICTIONS)
        if thresholding is not None and not callable(thresholding):
            raise ValueError(
                f"thresholding={thresholding!r} is not possible; pass StaticThreshold(1.0), DynamicThreshold(0.995) or "
                "any function of the data prediction"
            )
        self.model = model
        check_guidance(guidance, self.table)
        self.prediction = prediction
        self.guidance = guidance
        self.thresholding = thresholding
        self.network_dtype = x.dtype
        self.label_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.evaluations = 0
        self.forwards = 0
        self.memory: dict[str, Tensor] = {}
        self._steps = None if self.table is None else StepMap(self.table)

    def conversion(self, level: Level, form: str) -> tuple[Pair, ...]:
        """Host coefficients (c_x, c_out) of each conversion from the network's output to `form` at `level`.

        One pair; with thresholding two, to the data and from there to `form`.

        Raises
        ------
        ValueError
            The prediction does not determine `form` (or the data to be thresholded) at this level.
        """
        if self.thresholding is None:
            return (_coefficients(level, self.prediction, form),)
        return (_coefficients(level, self.prediction, "data"), _coefficients(level, "data", form))

    def at(self, level: Level, form: str, query: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Evaluate the network at `query` on `level`; returns its output in `form`.

        Raises
        ------
        ValueError
            As `conversion`, before the call.
        """
        conversion = self.conversion(level, form)
        t = torch.full((len(query),), level.time, dtype=self.label_dtype, device=query.device)
        return self._evaluate(query, t, conversion, kwargs, level)

    def _evaluate(
        self,
        query: Tensor,
        t: Tensor,
        conversion: tuple[Pair, ...],
        kwargs: Mapping[str, Any],
        level: Level,
        row: int | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """Call and convert; what a bridge's query holds of its source, anchor·source, is left out of conversions."""
        x, anchor = query.to(self.network_dtype), level.anchor
        if self.guidance is None:
            raw = self.model(x, t, **kwargs)
            self.forwards += 1
        else:
            raw = self._guided(x, t, dict(kwargs), level, row, None if source is None else anchor * source)
        self.evaluations += 1
        if self.evaluations == 1:
            _check_output(raw, x)
        output = raw.to(query.dtype)
        for k, (on_query, on_output) in enumerate(conversion):
            if k == 1 and self.thresholding is not None:
                output = _same_shape(self.thresholding(output), output)
            output = affine(query, output, on_query, on_output)
            if on_query != 0.0 and anchor and source is not None:
                output = output.add(source, alpha=-on_query * anchor)
        return output

    def _guided(
        self, x: Tensor, t: Tensor, kwargs: dict[str, Any], level: Level, row: int | None, anchored: Tensor | None
    ) -> Tensor:
        """The guided output; a guidance that asks for the place of the evaluation is told."""
        assert self.guidance is not None
        place = Place(level, self.prediction, self.memory, row, self.table, anchored=anchored)
        if row is not None and self._steps is not None:
            place.step, place.steps = self._steps.step(row), self._steps.count
            place.first_stage = self._steps.first_stage(row)
        raw = guided_output(self.guidance, place.counted(self.model), x, t, kwargs, place)
        self.forwards += place.forwards
        return raw


class TableBorder(Border):
    """Calls the network for the rows of one table.

    Everything a row needs (time label, conversion coefficients) is computed before the first call.

    Parameters
    ----------
    table : Table
    model, x, prediction, guidance, thresholding : as in `Border`

    Raises
    ------
    ValueError
        As `Border`; or a row at which the network's output does not determine what the row stores (noise prediction at
        signal 0, velocity without rates).
    """

    def __init__(
        self,
        table: Table,
        model: Model,
        x: Tensor,
        prediction: str = "data",
        guidance: Guidance | None = None,
        thresholding: Thresholding | None = None,
    ) -> None:
        self.table = table
        super().__init__(model, x, prediction, guidance, thresholding)
        self.conversions = [
            _of_row(table, k, row, prediction, self.conversion) if row.calls_network else ()
            for k, row in enumerate(table.rows)
        ]
        self.labels = torch.tensor([row.level.time for row in table.rows], dtype=self.label_dtype, device=x.device)

    def __call__(
        self, index: int, row: Row, query: Tensor, kwargs: Mapping[str, Any], source: Tensor | None = None
    ) -> Tensor:
        """Evaluate the network at `query` for row `index`; returns the output in the row's form."""
        t = self.labels[index].expand(len(query))
        return self._evaluate(query, t, self.conversions[index], kwargs, row.level, index, source)


def _same_shape(thresholded: Any, data: Tensor) -> Tensor:
    shape = tuple(thresholded.shape) if isinstance(thresholded, Tensor) else type(thresholded).__name__
    if shape != tuple(data.shape):
        raise ValueError(f"thresholding returned {shape} for data predictions of shape {tuple(data.shape)}")
    return thresholded


def row_conversions(table: Table, prediction: str) -> list[Pair]:
    """For every row (c_x, c_out) with stored form = c_x·query + c_out·output; (0, 1) for rows without a call.

    Raises
    ------
    ValueError
        Unknown prediction, or a row at which the prediction does not determine what the row stores.
    """
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)

    def convert(level: Level, form: str) -> Pair:
        return _coefficients(level, prediction, form)

    return [
        _of_row(table, k, row, prediction, convert) if row.calls_network else (0.0, 1.0)
        for k, row in enumerate(table.rows)
    ]


def _coefficients(level: Level, source: str, target: str) -> Pair:
    return coefficients(level.signal, level.noise, level.signal_rate, level.noise_rate, source, target)


def _of_row(table: Table, index: int, row: Row, prediction: str, convert: Callable[[Level, str], T]) -> T:
    level = row.level
    try:
        return convert(level, row.form)
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
