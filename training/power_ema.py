"""Power-function averages of weights, and averages of any length from their snapshots after training.

Karras, Aittala, Lehtinen, Hellsten, Aila and Laine, "Analyzing and improving the training dynamics of diffusion
models", CVPR 2024 (arXiv:2312.02696), section 3 and appendix C. An average weighs the weights θ(τ) of time τ ≤ t by
(γ + 1)·τ^γ/t^(γ+1); its length is told as the relative standard deviation of that profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LONGEST = 0.28
"""Relative standard deviations lie below that of the uniform average, 1/√12."""


@dataclass(frozen=True)
class Profile:
    """The average that ends at time `end`, in any unit of training such as images seen.

    Parameters
    ----------
    end : float > 0
    std : float in (0, 0.28]
        Standard deviation of the profile over `end`.

    Raises
    ------
    ValueError
        A number out of range.
    """

    end: float
    std: float

    def __post_init__(self) -> None:
        if not self.end > 0:
            raise ValueError(f"end={self.end!r} is not possible; a profile ends at a positive time")
        exponent_of(self.std)

    @property
    def exponent(self) -> float:
        """The γ of its profile."""
        return exponent_of(self.std)


@lru_cache
def exponent_of(std: float) -> float:
    """γ of a relative standard deviation: the largest root of γ³ + 7γ² + (16 − s⁻²)γ + 12 − s⁻².

    Raises
    ------
    ValueError
        std outside (0, 0.28].
    """
    if not 0.0 < std <= LONGEST:
        raise ValueError(f"std={std!r} is not possible; it is a relative standard deviation in (0, {LONGEST}]")
    inverse = std**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def std_of(exponent: float) -> float:
    """Relative standard deviation of a profile τ^γ."""
    return float(np.sqrt((exponent + 1.0) / ((exponent + 2.0) ** 2 * (exponent + 3.0))))


def decay(std: float, end: float, passed: float) -> float:
    """β of the update after which training has reached `end`, `passed` of it since the last one: (1 − Δ/t)^(γ+1)."""
    if not 0.0 < passed <= end:
        raise ValueError(f"passed={passed!r} of end={end!r} is not possible; it is positive and at most the end")
    return float((1.0 - passed / end) ** (exponent_of(std) + 1.0))


def overlap(first: Profile, second: Profile) -> float:
    """∫ p_a·p_b dτ of two profiles."""
    a, b = first.exponent, second.exponent
    shrink = (first.end / second.end) ** b if first.end < second.end else (second.end / first.end) ** a
    return (a + 1.0) * (b + 1.0) / ((a + b + 1.0) * max(first.end, second.end)) * shrink


def combination(stored: Sequence[Profile], wanted: Profile) -> Array:
    """Weights (n,), of sum 1, of stored averages whose combined profile is nearest to `wanted` in L².

    Raises
    ------
    ValueError
        No stored profile, or one wanted that ends after all of them or is far outside their lengths.
    """
    if not stored:
        raise ValueError("no stored averages: nothing can be combined")
    latest = max(profile.end for profile in stored)
    if wanted.end > latest * (1.0 + _SAME):
        raise ValueError(f"an average that ends at {wanted.end:g} cannot be made of ones that end by {latest:g}")
    lengths = [profile.std for profile in stored]
    if not min(lengths) / _STRETCH <= wanted.std <= max(lengths) * _STRETCH:
        raise ValueError(
            f"std={wanted.std:g} is far outside those stored ({min(lengths):g} to {max(lengths):g}); between "
            f"{min(lengths) / _STRETCH:.3g} and {max(lengths) * _STRETCH:.3g} is possible"
        )
    gram = np.array([[overlap(a, b) for b in stored] for a in stored])
    aims = np.array([overlap(a, wanted) for a in stored])
    scale = 1.0 / np.sqrt(np.diagonal(gram))  # profiles of equal norm, for a better condition
    found, *_ = np.linalg.lstsq(gram * scale[:, None] * scale, aims * scale, rcond=_CUT)
    weights: Array = found * scale
    return weights / weights.sum()


def misfit(stored: Sequence[Profile], weights: Array, wanted: Profile) -> float:
    """Distance in L² between the profile of a weighted sum of stored averages and the one wanted, over its norm."""
    gram = np.array([[overlap(a, b) for b in stored] for a in stored])
    aims = np.array([overlap(a, wanted) for a in stored])
    norm = overlap(wanted, wanted)
    square = weights @ gram @ weights - 2.0 * weights @ aims + norm
    return float(np.sqrt(max(square, 0.0) / norm))


_SAME = 1e-9
_STRETCH = 1.5  # beyond the stored lengths reconstructions lose their profile
_CUT = 1e-14
