"""CFG++: guided data, unconditional noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pathline.interpolants import coefficients

from ..run_state import Hook, RunState
from ..table import Table
from .modifiers import Modifier, check_source
from .pairs import Pair
from .protocol import Place, known, row_step


@dataclass(frozen=True)
class PlusPlus(Modifier, Hook):
    """CFG++ (Chung et al. 2025, arXiv:2406.08070) for methods with one call per step.

    A step puts data and noise of a prediction at the next level. CFG++ takes the data from the guided prediction
    D = D_reference + strength·(D_own − D_reference), the noise from the reference's, and lets the history of a
    multistep method hold the reference's. With the step x' = carry·x + k·D + … of a row, that equals guidance at scale
    strength·(k + carry·signal)/k, computed from the table before the call; for DDIM it is strength/(1 − e^{−h}). On
    the way back to noise (`editing.inversion_table`) the roles are mirrored, as published: the data are the
    reference's, the noise the guided prediction's.

    Attributes
    ----------
    inner : ClassifierFree or AutoGuidance
        Its `scale` is the strength, in [0, 1]: 0 is the reference, 1 takes the data from the model itself. The authors'
        range corresponds to scales of 1 to 12.5 at 50 steps.

    Raises
    ------
    ValueError
        When the run begins with a method that has inner stages or corrections, or chooses its own steps.
    """

    inner: Pair

    def __post_init__(self) -> None:
        check_source("PlusPlus", self.inner)
        strength = self.inner.scale
        if strength is not None and not 0.0 <= strength <= 1.0:
            raise ValueError(f"scale={strength!r} inside PlusPlus is not possible; it is a strength in [0, 1]")

    @property
    def scale(self) -> None:  # type: ignore[override]
        """None: the scale it amounts to differs from step to step."""

    def check(self, table: Table | None) -> None:
        """Raise ValueError unless every call of `table` is one whole step."""
        if table is None:
            raise ValueError("PlusPlus changes the step of a table; adaptive methods and pipelines have none")
        for index, row in enumerate(table.rows):
            if row.calls_network and (row.updates or row.output != table.result):
                row_step(table, index)

    def active(self, place: Place | None) -> bool:
        """Always: the noise is the reference's."""
        return True

    def scale_of_row(self, table: Table, index: int, strength: float) -> float:
        """The scale of plain guidance that a row's CFG++ step amounts to."""
        if table.rows[index].output == table.result:  # the step to noise 0 is the data prediction itself
            return strength
        step = row_step(table, index)
        if step.on_data < 0.0:  # towards noise
            return -strength * step.carry * table.rows[index].level.signal / step.on_data
        return strength * (step.on_data + step.carry * table.rows[index].level.signal) / step.on_data

    def combine(self, own: Tensor, reference: Tensor, x: Tensor, place: Place | None) -> Tensor:
        """The output whose step is that of CFG++."""
        here = known(place, "PlusPlus")
        if here.table is None or here.row is None:
            self.check(None)
        assert here.table is not None
        assert here.row is not None
        scale = self.scale_of_row(here.table, here.row, self.scale_at(place))
        change = own - reference
        on_data = coefficients(*here.level[1:5], here.prediction, "data")[1]
        here.memory[f"{id(self)}:added"] = (on_data * scale) * change
        return reference + scale * change

    def after_row(self, run: RunState) -> None:
        """Leave the reference's prediction in the history."""
        row = run.table.rows[run.row]
        added = run.extras.pop(f"{id(self)}:added", None)
        if added is None or row.output is None or row.output == run.table.result:
            return
        _, factor = coefficients(*row.level[1:5], "data", row.form)
        run.values[row.output] = run.values[row.output] - factor * added
