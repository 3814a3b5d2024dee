"""Everything that can be said of a table before it is run, in one object that prints itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..registry import Case, list_methods, method_info
from ..table import Table
from .exactness import Exactness, exactness, history_weight
from .gaussian_transfer import Transfer, transfer
from .measured_order import measured_order
from .spectrum import SpectrumLike
from .stability_map import Stability, case_of, stability

_SHOWN = 6  # eigenvalues in the text


@dataclass(frozen=True)
class Analysis:
    """What `Table.analyse` finds.

    Attributes
    ----------
    table : Table
    case : Case or None
        The declared configuration of the method, None for tables that no registered method made.
    order, cold_order : float or None
        Measured, see `measured_order`; weak orders for stochastic methods.
    exactness : Exactness or None
        Degree of every row, from the coefficients alone.
    history : tuple of float
        Σ|w|/|Σw| of every row, see `history_weight`.
    largest : float
        Largest coefficient of an update, in absolute value.
    stability : Stability or None
    transfer : Transfer or None
        On Gaussian data of the given spectrum.
    notes : tuple of str
        Why something above is None.
    """

    table: Table
    case: Case | None
    order: float | None
    cold_order: float | None
    exactness: Exactness | None
    history: tuple[float, ...]
    largest: float
    stability: Stability | None
    transfer: Transfer | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [*self._orders(), *self._coefficients(), *self._stability(), *self._transfer()]
        return "\n".join([*lines, *(f"note: {text}" for text in self.notes)])

    def _orders(self) -> list[str]:
        if self.case is None or self.order is None or self.cold_order is None:
            return []
        kind = "weak order" if self.table.stochastic else "order"
        found = f"{kind} {self.order:.2f} (declared {self.case.order}) on grids uniform in {self.case.variable}"
        if self.table.stochastic:
            return [f"measured {found}"]
        return [f"measured {found}; {self.cold_order:.2f} (declared {self.case.cold_order}) from a cold start"]

    def _coefficients(self) -> list[str]:
        lines = []
        if self.exactness is not None:
            lines.append(f"exact for polynomial outputs to degree (1 = constants) {self.exactness}")
        if self.history:
            shown = " ".join(f"{w:.2f}" for w in self.history)
            lines.append(f"Σ|w|/|Σw| of output weights by row: {shown}; largest {max(self.history):.2f}")
        return [*lines, f"largest coefficient {self.largest:.4g}"]

    def _stability(self) -> list[str]:
        if self.stability is None:
            return []
        s = self.stability
        unit = f"z = h·κ, h = {s.step:g}" if s.variable == "lam" else "z = step·κ"
        kind = "mean stable" if self.table.stochastic else "stable"
        return [f"{kind} on the real axis down to {s.real_limit():.4g} ({unit}, in {s.variable}; per step of the grid)"]

    def _transfer(self) -> list[str]:
        if self.transfer is None:
            return []
        found, spectrum = self.transfer, self.transfer.spectrum
        lines = [
            f"on Gaussian data in {spectrum.dimension:g} dimensions: W2 {found.w2:.5g}, Fréchet distance "
            f"{found.frechet:.5g}, "
            + (f"W2/√d {found.rmse:.5g}" if found.stochastic else f"RMSE to the probability flow {found.rmse:.5g}")
        ]
        order = [j for j in np.argsort(spectrum.values)[::-1] if spectrum.values[j] > 1e-6 * spectrum.values.max()]
        spread = np.unique(np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).round().astype(int))
        lines.append("variance → standard deviation of the result over the data's:")
        lines += [f"    {spectrum.values[j]:.4g} → {found.bias[j]:.5f}" for j in np.array(order)[spread]]
        return lines


def analyse(
    table: Table,
    spectrum: SpectrumLike | None = None,
    mean: Any = None,
    *,
    start: str = "marginal",
    orders: bool = True,
) -> Analysis:
    """Analyse a table without a network.

    Parameters
    ----------
    table : Table
    spectrum, mean : optional
        Data for the Gaussian transfer, see `as_spectrum`.
    start : {"marginal", "prior"}
        See `transfer`.
    orders : bool
        Measure the orders of the method, which takes a few tenths of a second.

    Raises
    ------
    ValueError
        A spectrum that is none, or a table that Gaussian data do not fit (bridges).
    """
    found = transfer(table, spectrum, mean, start=start) if spectrum is not None else None
    notes: list[str] = []
    case: Case | None = None
    measured: tuple[float | None, float | None] = (None, None)
    stable: Stability | None = None
    if table.method in list_methods():
        options = {k: v for k, v in table.options.items() if k in method_info(table.method).options}
        case = case_of(table.method, options)
        if orders:
            measured = _orders(table, options, notes)
        try:
            stable = stability(table.method, step=_own_step(table), **options)
        except ValueError as error:
            notes.append(f"no stability function: {error}")
    else:
        notes.append(f"{table.method!r} is not a registered method: no orders and no stability function")
    return Analysis(
        table=table,
        case=case,
        order=measured[0],
        cold_order=measured[1],
        exactness=exactness(table),
        history=history_weight(table),
        largest=max((float(np.abs(c).max()) for _, c in table.coefficients()), default=0.0),
        stability=stable,
        transfer=found,
        notes=tuple(notes),
    )


def _own_step(table: Table) -> float:
    """The median step in λ of the table's rows, kept within what a stability function takes."""
    lam = np.array([row.level.lam for row in table.rows] + [table.end.lam])
    steps = np.diff(np.unique(lam[np.isfinite(lam)]))
    return float(np.clip(np.median(steps), 0.05, 3.0)) if len(steps) else 0.5


def _orders(table: Table, options: dict[str, Any], notes: list[str]) -> tuple[float | None, float | None]:
    # what belongs to this table's own length or end is no part of the method's order
    free = {k: v for k, v in options.items() if k not in ("lower_order_final", "orders", "disable_corrector")}
    try:
        warm = measured_order(table.method, **free)
        return warm, warm if table.stochastic else measured_order(table.method, cold=True, **free)
    except ValueError as error:
        notes.append(f"no measured order: {error}")
        return None, None
