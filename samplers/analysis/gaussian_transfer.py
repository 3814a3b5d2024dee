"""What a table does to Gaussian data, in closed form: the law it samples and its distance to the data's.

For data N(μ, C) the exact network is affine, and along an eigenvector of C with variance v everything a table
computes is a·ξ + b·μ + Σ_k c_k·z_k: ξ the normalised start, μ the mean's component, z_k the fresh noises. A run
over all eigenvalues at once is a few hundred operations on small arrays, with no network and no samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..numerics import Array
from ..table import Coefficient, Row, Table, Terms
from .spectrum import Spectrum, SpectrumLike, as_spectrum

STARTS = ("marginal", "prior")
_START, _MEAN, _FRESH = 0, 1, 2  # columns of a response


@dataclass(frozen=True)
class Transfer:
    """The law of a table's result on Gaussian data, direction by direction.

    Attributes
    ----------
    spectrum : Spectrum
        The data's J groups of directions.
    gain : array (J,)
        Response to the start, in standard deviations of the start; exact where it equals `exact_gain`.
    mean_gain : array (J,)
        Factor of the data's mean in the result; exact where it equals `exact_mean_gain`.
    fresh : array (J,)
        Standard deviation that fresh noise adds; 0 for deterministic tables.
    exact_gain, exact_mean_gain : arrays (J,)
        The same for the end point of the probability flow from the same start.
    target : array (J,)
        Standard deviations at the table's end: of the data where it ends at noise 0.
    end_signal : float
        Factor of the data's mean in the law at the table's end.
    stochastic : bool
    """

    spectrum: Spectrum
    gain: Array
    mean_gain: Array
    fresh: Array
    exact_gain: Array
    exact_mean_gain: Array
    target: Array
    end_signal: float
    stochastic: bool

    @property
    def std(self) -> Array:
        """Standard deviations of the result, (J,)."""
        return np.asarray(np.hypot(self.gain, self.fresh))

    @property
    def variance(self) -> Array:
        """Variances of the result, (J,)."""
        return self.std**2

    @property
    def bias(self) -> Array:
        """Standard deviation of the result over that of the target, (J,); NaN where the target has none."""
        return np.divide(self.std, self.target, out=np.full_like(self.target, np.nan), where=self.target > 0)

    @property
    def w2(self) -> float:
        """Exact 2-Wasserstein distance between the law of the result and the target.

        Both are Gaussian with commuting covariances: W2² = |Δmean|² + Σ (std − target)².
        """
        return float(np.sqrt(self._total(self.std - self.target, self.mean_gain - self.end_signal)))

    @property
    def frechet(self) -> float:
        """Fréchet distance |Δmean|² + tr(C + C' − 2(CC')^½) in data space: W2², as the covariances commute."""
        return self.w2**2

    @property
    def rmse(self) -> float:
        """Root mean square error per value.

        For deterministic tables to the probability-flow end point of the same start. A stochastic table has no such
        point: there it is W2/√d, the least that any coupling of the two laws leaves.
        """
        if self.stochastic:
            return self.w2 / float(np.sqrt(self.spectrum.dimension))
        error = self._total(self.gain - self.exact_gain, self.mean_gain - self.exact_mean_gain)
        return float(np.sqrt(error / self.spectrum.dimension))

    def residuals(self) -> Array:
        """Entries whose squares sum to `rmse`², smooth in the table's coefficients: for least squares."""
        ours, exact = (self.std, self.target) if self.stochastic else (self.gain, self.exact_gain)
        mean = self.end_signal if self.stochastic else self.exact_mean_gain
        share = np.sqrt(self.spectrum.counts / self.spectrum.dimension)
        return np.concatenate(
            [share * (ours - exact), share * np.sqrt(self.spectrum.mean_square) * (self.mean_gain - mean)]
        )

    def _total(self, spread: Array, mean: Array) -> float:
        return float((self.spectrum.counts * (spread**2 + self.spectrum.mean_square * mean**2)).sum())


def transfer(
    table: Table,
    spectrum: SpectrumLike,
    mean: Any = None,
    *,
    start: str = "marginal",
    origin: tuple[float, float] | None = None,
) -> Transfer:
    """The law that `table` samples for Gaussian data and the exact network, in closed form.

    Parameters
    ----------
    table : Table
    spectrum : see `as_spectrum`
        Variances of the data along its principal directions.
    mean : array, optional
        The data's mean, see `as_spectrum`; default 0.
    start : {"marginal", "prior"}
        Law of the initial state: the path's own N(signal·μ, signal²·v + noise²), or N(0, noise²), which is what
        `path.prior` draws and what leaves a bias where the path starts at a signal above 0.
    origin : (signal, noise), optional
        Where the initial state is drawn and the probability flow begins; default the table's start. A grid that
        begins below the path's own start (as "leading" does) is fed a state that is too noisy for it: with the
        path's start as origin that counts as its error.

    Raises
    ------
    ValueError
        A bridge, another anchor than the data's mean, coefficients per coordinate, velocity rows without rates.
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is not possible; allowed: {', '.join(STARTS)}")
    _check_analysable(table)
    given = as_spectrum(spectrum, mean)
    v = given.values
    (signal, noise), last = origin or (table.start.signal, table.start.noise), table.end
    spread = np.sqrt(signal**2 * v + noise**2)
    target = np.sqrt(last.signal**2 * v + last.noise**2)
    scale = np.divide(target, spread, out=np.ones_like(target), where=spread > 0)  # of the probability flow
    drawn, shift = (spread, signal) if start == "marginal" else (np.full_like(v, noise), 0.0)
    result = _respond(table, v, drawn, shift)
    return Transfer(
        spectrum=given,
        gain=result[:, _START],
        mean_gain=result[:, _MEAN],
        fresh=np.linalg.norm(result[:, _FRESH:], axis=1),
        exact_gain=scale * drawn,
        exact_mean_gain=last.signal + scale * (shift - signal),
        target=target,
        end_signal=last.signal,
        stochastic=table.stochastic,
    )


def _check_analysable(table: Table) -> None:
    if set(table.anchors) - {"data_mean"} or any(row.level.anchor for row in table.rows):
        raise ValueError(
            f"method {table.method!r} runs a bridge, which starts at a source image: the transfer of Gaussian data is "
            "defined for paths that start from noise"
        )
    estimates = [c for row in table.rows for _, c in row.estimate or ()]
    if table.has_arrays or any(isinstance(c, np.ndarray) for c in estimates):
        raise ValueError(f"method {table.method!r} has coefficients per coordinate, which do not commute with the data")


def _respond(table: Table, v: Array, drawn: Array, shift: float) -> Array:
    """Response of the result: (J, 2 + draws)."""
    draws = sum(z >= 0 for row in table.rows for z in row.noises)
    width = _FRESH + draws
    values = {0: np.zeros((len(v), width))}
    values[0][:, _START], values[0][:, _MEAN] = drawn, shift
    for place in range(len(table.anchors)):
        values[1 + place] = np.zeros((len(v), width))
        values[1 + place][:, _MEAN] = 1.0
    column = _FRESH
    for row, freed in zip(table.rows, table.last_uses, strict=True):
        if row.query is not None and row.output is not None:
            exact = row.estimate is None
            values[row.output] = _network(row, values[row.query], v) if exact else _sum(row.estimate or (), values)
        for z in row.noises:
            if z >= 0:
                values[z] = np.zeros((len(v), width))
                values[z][:, column] = 1.0
                column += 1
        for target, terms in row.updates:
            values[target] = _sum(terms, values)
        for value in freed:
            values.pop(value, None)
    return values[table.result]


def _sum(terms: Terms, values: dict[int, Array]) -> Array:
    if not terms:
        return np.zeros_like(values[0]) if 0 in values else np.zeros_like(next(iter(values.values())))
    total = _number(terms[0][1]) * values[terms[0][0]]
    for value, c in terms[1:]:
        total += _number(c) * values[value]
    return total


def _number(c: Coefficient) -> float:
    return float(c)  # arrays were refused


def _network(row: Row, query: Array, v: Array) -> Array:
    """Output of the exact network: data μ + g·(x − signal·μ), noise e·(x − signal·μ), or the velocity of both."""
    level = row.level
    total = level.signal**2 * v + level.noise**2
    known = total > 0
    data = np.divide(level.signal * v, total, out=np.zeros_like(v), where=known)
    noise = np.divide(level.noise, total, out=np.zeros_like(v), where=known)
    if row.form == "data":
        gain, shift = data, 1.0 - data * level.signal
    elif row.form == "noise":
        gain, shift = noise, -noise * level.signal
    else:
        if level.signal_rate is None or level.noise_rate is None:
            raise ValueError(
                f"row at time {level.time:g} stores velocity, but the path's rates are unknown; pass path=..."
            )
        gain = level.signal_rate * data + level.noise_rate * noise
        shift = level.signal_rate - gain * level.signal
    output = gain[:, None] * query
    output[:, _MEAN] += shift
    return output
