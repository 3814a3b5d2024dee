"""The covariance spectrum of a data set: all that the analysis of Gaussian data needs to know of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..numerics import Array

_NEGATIVE = 1e-8  # eigenvalues below this part of the largest one are rounding
GROUPING = 0.02
"""Default width, in log variance, of the groups of `Spectrum.grouped`: moves an error by less than 1e-3 of itself."""


@dataclass(frozen=True)
class Spectrum:
    """Variances along the principal directions of the data, directions of equal variance in one entry.

    Attributes
    ----------
    values : array (J,)
        Variance of every group of directions, ≥ 0.
    counts : array (J,)
        Directions in each group, > 0; they sum to the dimension of the data.
    mean_square : array (J,)
        Square of the data's mean along a direction, on average over each group.
    """

    values: Array
    counts: Array
    mean_square: Array

    @property
    def dimension(self) -> float:
        """Number of directions."""
        return float(self.counts.sum())

    @property
    def spread(self) -> float:
        """Standard deviation per direction."""
        return float(np.sqrt((self.counts * self.values).sum() / self.dimension))

    @classmethod
    def of(cls, values: Any, mean: Any = None) -> Spectrum:
        """One entry per direction.

        Parameters
        ----------
        values : array (d,)
            Variances; tiny negative ones, as `eigvalsh` makes of zeros, become 0.
        mean : array (d,), optional
            The data's mean in the same basis; default 0.

        Raises
        ------
        ValueError
            Not one-dimensional, not finite, negative, or of unequal length.
        """
        variances = np.asarray(values, dtype=np.float64)
        if variances.ndim != 1 or len(variances) == 0:
            raise ValueError(f"spectrum must be one-dimensional and not empty, got shape {variances.shape}")
        if not np.isfinite(variances).all():
            raise ValueError("spectrum holds values that are not finite")
        if variances.min() < -_NEGATIVE * max(variances.max(), 0.0) or variances.max() <= 0:
            raise ValueError(f"spectrum must hold variances ≥ 0, one of them positive, got {variances.min():g} in it")
        centre = np.zeros_like(variances) if mean is None else np.asarray(mean, dtype=np.float64).reshape(-1)
        if centre.shape != variances.shape or not np.isfinite(centre).all():
            raise ValueError(f"mean must be finite with {len(variances)} entries, got shape {centre.shape}")
        return cls(np.clip(variances, 0.0, None), np.ones_like(variances), centre**2)

    @classmethod
    def from_moments(cls, mean: Any, covariance: Any) -> Spectrum:
        """From a mean (d,) and a covariance (d, d).

        Raises
        ------
        ValueError
            Shapes that do not fit, or a covariance that is not finite and symmetric.
        """
        sigma = np.asarray(covariance, dtype=np.float64)
        centre = np.asarray(mean, dtype=np.float64).reshape(-1)
        if sigma.ndim != 2 or sigma.shape != (len(centre), len(centre)):
            raise ValueError(f"covariance must have shape ({len(centre)}, {len(centre)}), got {sigma.shape}")
        if not np.isfinite(sigma).all() or np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max():
            raise ValueError("covariance must be finite and symmetric")
        values, basis = np.linalg.eigh((sigma + sigma.T) / 2)
        return cls.of(values, centre @ basis)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Spectrum:
        """From an .npz with ``mu`` and ``sigma``, as `pathline stats DATA --out FILE` writes it.

        Raises
        ------
        ValueError
            The file is missing, damaged or holds something else.
        """
        file = Path(path)
        try:
            with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
                mean, covariance = content["mu"], content["sigma"]
        except Exception as error:  # numpy, zipfile and zlib each have their own errors for the same thing
            raise ValueError(f"statistics file {file} cannot be read, it must hold mu and sigma: {error}") from error
        return cls.from_moments(mean, covariance)

    def grouped(self, width: float = GROUPING) -> Spectrum:
        """The same spectrum with directions joined whose variances differ by less than a factor e^width.

        Total variance and mean are kept. All variances below 1e-12 of the largest count as one.
        """
        order = np.argsort(self.values)
        values, counts, mean_square = self.values[order], self.counts[order], self.mean_square[order]
        place = np.floor(np.log(np.maximum(values, values[-1] * 1e-12)) / width)
        starts = np.flatnonzero(np.diff(place, prepend=place[0] - 1))
        total = np.add.reduceat(counts, starts)
        return Spectrum(
            np.add.reduceat(counts * values, starts) / total,
            total,
            np.add.reduceat(counts * mean_square, starts) / total,
        )

    def perturbed(self, scale: float = 1.0, tilt: float = 0.0) -> Spectrum:
        """Variances times `scale`, and their spread in log variance times 1 + `tilt`; the total is then `scale` times.

        The mean stays.

        Raises
        ------
        ValueError
            A scale that is not positive, or a tilt of −1 or less.
        """
        if not (scale > 0 and np.isfinite(scale) and tilt > -1 and np.isfinite(tilt)):
            raise ValueError(f"scale={scale!r}, tilt={tilt!r} are not possible; positive and above -1")
        tilted = self.values ** (1.0 + tilt)
        total = (self.counts * self.values).sum() / (self.counts * tilted).sum()
        return Spectrum(scale * total * tilted, self.counts, self.mean_square)


SpectrumLike = Spectrum | Sequence[float] | Array | str | os.PathLike[str] | Any


def as_spectrum(given: SpectrumLike, mean: Any = None) -> Spectrum:
    """A `Spectrum` from whatever describes the second moments of data.

    Parameters
    ----------
    given : Spectrum, array (d,), array (d, d), path or an object with `mean` and `covariance`
        Variances along the principal directions, a covariance, a statistics .npz, or moments such as those of
        `pathline.interpolants.Gaussian` and `pathline.evals.Moments`.
    mean : array (d,), optional
        For arrays only: the mean, in the principal basis for variances, in the data's own for a covariance.

    Raises
    ------
    ValueError
        None of these, or a mean given twice.
    """
    own_mean = isinstance(given, (Spectrum, str, os.PathLike)) or hasattr(given, "covariance")
    if own_mean and mean is not None:
        raise ValueError(f"mean is given twice: the {type(given).__name__} brings its own")
    if isinstance(given, Spectrum):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Spectrum.load(given)
    if hasattr(given, "covariance") and hasattr(given, "mean"):
        return Spectrum.from_moments(given.mean, given.covariance)
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"spectrum={given!r} is not possible; give variances (d,), a covariance (d, d) or a statistics .npz"
        ) from None
    if values.ndim == 2:
        return Spectrum.from_moments(np.zeros(len(values)) if mean is None else mean, values)
    return Spectrum.of(values, mean)
