"""Where along a table data are predicted well enough to be rewarded, and the hook that acts there."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import Tensor

from pathline.interpolants import coefficients

from ..combine import affine
from ..guidance.protocol import StepMap
from ..run_state import Hook, RunState
from ..table import Table

Checkpoints = int | Collection[int] | None
"""Every so many steps (never the first one), the numbers of rows of the table, or None: the end alone."""


class DataHook(Hook):
    """A hook that looks at data predictions before the state moves on, and at the result.

    A sub-class gives `at_data` and `at_end`. Both may call `run.gather`; the row's output is then among `run.values`
    and moves along, so that copies part ways in the very next draw.
    """

    whole_batch = True
    checkpoints: Checkpoints = 1
    _rows: dict[int, tuple[float, float]]
    _seen: RunState | None = None

    def at_data(self, run: RunState, data: Tensor) -> None:
        """The data (B, ...) predicted at the current row, before its updates."""
        raise NotImplementedError

    def at_end(self, run: RunState) -> None:
        """The run is over; the result is `run.values[run.table.result]`."""
        raise NotImplementedError

    def prepare(self, run: RunState) -> None:
        """A run starts: find the rows to look at. Override (and call this) to prepare more."""
        self._seen, self._rows = run, moments_of(run.table, self.checkpoints)
        if self._rows and not run.table.stochastic:
            warnings.warn(
                f"table {run.table.method!r} draws no noise, so that copies of a state never part; take a stochastic "
                "method, such as ddim with eta=1, or look at the end alone",
                stacklevel=4,
            )

    def due(self, run: RunState) -> bool:
        """Whether the current row is one to look at; prepares at the first row of a run."""
        if run is not self._seen:
            self.prepare(run)
        return run.row in self._rows

    def before_model(self, run: RunState, query: Tensor) -> None:
        """Prepare at the first row."""
        self.due(run)

    def after_model(self, run: RunState, query: Tensor, output: Tensor) -> Tensor | None:
        """Show the data predicted here to `at_data`."""
        if not self.due(run):
            return None
        kept = run.table.rows[run.row].output
        assert kept is not None
        run.values[kept] = output
        self.at_data(run, affine(query, output, *self._rows[run.row]))
        return run.values[kept]

    def after_row(self, run: RunState) -> None:
        """Show the end to `at_end`."""
        self.due(run)
        if run.row == len(run.table.rows) - 1:
            self.at_end(run)


def moments_of(table: Table, checkpoints: Checkpoints) -> dict[int, tuple[float, float]]:
    """Rows at which data are looked at, with (c_x, c_out) that make data predictions of their outputs.

    The last row is never among them, since the result is looked at instead; with a number of steps, neither is a row
    whose output says nothing about the data (noise predicted at signal 0).

    Raises
    ------
    ValueError
        A number below 1, a row that the table does not have or that predicts no data, or a bridge.
    """
    if checkpoints is None:
        return {}
    count = len(table.rows)
    if isinstance(checkpoints, int):
        if checkpoints < 1:
            raise ValueError(f"checkpoints={checkpoints!r} is not possible; every so many steps, at least 1")
        steps = StepMap(table)
        wanted = [
            k
            for k, row in enumerate(table.rows)
            if row.calls_network and steps.first_stage(k) and steps.step(k) and steps.step(k) % checkpoints == 0
        ]
    else:
        wanted = sorted(checkpoints)
        if wrong := [k for k in wanted if not 0 <= k < count or not table.rows[k].calls_network]:
            raise ValueError(
                f"checkpoints={wrong} are no rows with a network call; the table has rows 0 to {count - 1}"
            )
    found = {}
    for k in wanted:
        row = table.rows[k]
        if k == count - 1:
            continue
        try:
            on_x, on_output = coefficients(*row.level[1:5], row.form, "data")
        except ValueError:
            if isinstance(checkpoints, int):
                continue
            raise
        if row.level.anchor and on_x:
            raise ValueError(f"method {table.method!r} stores no data on a bridge; steering needs the data prediction")
        found[k] = (on_x, on_output)
    return found
