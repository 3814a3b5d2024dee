"""What a run holds and shows: state, hooks, callbacks and results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .table import Table

NoiseSource = Callable[[int, int, Tensor], Tensor]
"""(row, slot, like) -> standard normal tensor shaped as `like`."""


class NonFiniteError(FloatingPointError):
    """The state stopped being finite; the message names the row, its time and the norms of the registers."""


@dataclass
class RunState:
    """Everything a hook may read or change between two operations of the loop.

    Attributes
    ----------
    table : Table
    values : dict of value number -> Tensor (B, ...)
        Registers alive; anchors included.
    samples : (B,) int64
        Global indices that key the noise; they belong to the slots and are never gathered.
    kwargs : dict
        Keyword arguments of the model; tensors with leading size B are gathered with the state.
    log_weights : (B,) or None
        For particle methods; the loop only carries it.
    row : int
    seed : int
        Key of the run's noise, for hooks that draw.
    prediction : str
        What the network returns.
    extras : dict of name -> Tensor (B, ...)
        What hooks keep for each sample, such as the last reward; gathered with the state.
    """

    table: Table
    values: dict[int, Tensor]
    samples: Tensor
    kwargs: dict[str, Any]
    log_weights: Tensor | None = None
    row: int = 0
    seed: int = 0
    prediction: str = "data"
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def data(self) -> Tensor | None:
        """The current row's data prediction, where the row stores data."""
        row = self.table.rows[self.row]
        return self.values.get(row.output) if row.output is not None and row.form == "data" else None

    def gather(self, index: Tensor, collect: Callable[[Tensor], Tensor] | None = None) -> None:
        """Re-index every register, condition and extra by `index` (B,), as a resampler does; noise keys stay.

        `collect` gives the rows (n, ...) that the index refers to from this process's (B, ...), where a batch is spread
        over several processes. Log-weights are the resampler's own affair.
        """
        batch = len(self.samples)

        def chosen(value: Tensor) -> Tensor:
            return (value if collect is None else collect(value)).index_select(0, index)

        self.values = {k: chosen(v) for k, v in self.values.items()}
        self.extras.update({k: chosen(v) for k, v in self.extras.items()})  # in place: guidances keep theirs here too
        self.kwargs = {
            k: chosen(v) if isinstance(v, Tensor) and v.shape[:1] == (batch,) else v for k, v in self.kwargs.items()
        }


class Hook:
    """Base of hooks; override what is needed. Each method is called once per row that has such a moment.

    `whole_batch` is True for hooks that let samples interact, which a batch run in chunks would part.
    """

    whole_batch: ClassVar[bool] = False

    def before_model(self, run: RunState, query: Tensor) -> Tensor | None:
        """Return a tensor to change what the network sees."""

    def after_model(self, run: RunState, query: Tensor, output: Tensor) -> Tensor | None:
        """Return a tensor to replace the output (already in the row's form)."""

    def after_row(self, run: RunState) -> None:
        """All updates of the row are done; `run.values` may be changed, `run.gather` called."""


class Callback(Protocol):
    """Called after every row with `StepInfo`."""

    def __call__(self, info: StepInfo) -> None:
        """Look at the step; the return value is ignored."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after a row: row number, number of rows, time, level, query and output tensors."""

    row: int
    rows: int
    time: float
    signal: float
    noise: float
    query: Tensor | None
    output: Tensor | None
    form: str
    state: Tensor


@dataclass
class Result:
    """Outcome of a run.

    Attributes
    ----------
    sample : Tensor (B, ...)
    evaluations : int
        Counted network evaluations of one batch (a guided pair counts once); where chunks differ, the largest count.
    table : Table or None
        None for adaptive methods, which have no table.
    log_weights : Tensor (B,) or None
    options : dict
        Protocol of the run: prediction, seed, forward passes of all branches ("forwards"; a guided pair counts twice);
        of adaptive methods also the accepted and rejected steps.
    """

    sample: Tensor
    evaluations: int
    table: Table | None
    log_weights: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
