"""The path of a network trained on a finite list of noise levels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import check_name
from .path import PREDICTIONS, PathPoint
from .preserving_paths import PreservingPath, log1p_exp
from .tensors import Time, as_float_tensor, as_time, widen


@dataclass(frozen=True)
class DiscretePath(PreservingPath):
    """Variance-preserving path through given values of signal^2, with log signal piecewise linear in t.

    Parameters
    ----------
    alphas_cumprod : sequence of N floats
        signal^2 of the training steps, strictly decreasing in (0, 1); index 0 has the least noise.

    Notes
    -----
    Training index n sits at t = 1 - (n + 1) / N, so t = 0 is index N - 1, and the last piece goes from index
    0 to signal 1, noise 0 at t = 1. At a knot the rates are those of the piece after it.
    """

    alphas_cumprod: tuple[float, ...]

    name: ClassVar[str] = "discrete"

    def __post_init__(self) -> None:
        values = as_float_tensor(self.alphas_cumprod).detach().cpu().double()
        if values.ndim != 1 or values.numel() < 2:
            raise ValueError(f"alphas_cumprod must be a list of at least 2 numbers, got shape {tuple(values.shape)}")
        if not bool(((values > 0) & (values < 1)).all()):
            index = int(((values > 0) & (values < 1)).logical_not().nonzero()[0])
            raise ValueError(
                f"alphas_cumprod must lie strictly between 0 and 1, got {values[index].item()!r} at index "
                f"{index}; for a schedule rescaled to signal 0 replace the 0 by a small number such as 2**-24"
            )
        if not bool((values[1:] < values[:-1]).all()):
            index = int((values[1:] >= values[:-1]).nonzero()[0]) + 1
            raise ValueError(
                "alphas_cumprod must decrease strictly (index 0 has the least noise), "
                f"but entry {index} is {values[index].item()!r} after {values[index - 1].item()!r}"
            )
        object.__setattr__(self, "alphas_cumprod", tuple(values.tolist()))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> "DiscretePath":
        """Make the path with signal^2 = cumulative product of 1 - beta; least noise first."""
        values = as_float_tensor(betas).detach().cpu().double()
        if values.ndim != 1 or not bool(((values > 0) & (values < 1)).all()):
            raise ValueError("betas must be a list of numbers strictly between 0 and 1")
        return cls(tuple(torch.cumprod(1 - values, 0).tolist()))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> "DiscretePath":
        """Make the path of betas linear in the index (DDPM)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> "DiscretePath":
        """Make the path of betas whose square roots are linear in the index (latent diffusion)."""
        roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=torch.float64)
        return cls.from_betas(roots.square())

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> "DiscretePath":
        """Make the path of the cosine betas, each at most `max_beta` (Nichol and Dhariwal, eq. 17)."""
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        power = ((tau + offset) / (1 + offset) * math.pi / 2).cos().square()
        return cls.from_betas((1 - power[1:] / power[:-1]).clamp(max=max_beta))

    @property
    def steps(self) -> int:
        """Number N of training steps."""
        return len(self.alphas_cumprod)

    def time_of_index(self, index: float | Tensor) -> Tensor:
        """Time 1 - (n + 1) / N of training index n (fractions allowed)."""
        return 1 - (as_float_tensor(index) + 1) / self.steps

    def index_of_time(self, t: float | Tensor) -> Tensor:
        """Training index N (1 - t) - 1, a fraction between the steps and below 0 beyond index 0."""
        return self.steps * (1 - as_float_tensor(t)) - 1

    @cached_property
    def _log_signal_knots(self) -> Tensor:
        squares = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        return torch.cat([0.5 * squares.log().flip(0), torch.zeros(1, dtype=torch.float64)])

    @cached_property
    def _knots_cache(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}

    def _knots(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        if key not in self._knots_cache:
            self._knots_cache[key] = self._log_signal_knots.to(dtype=like.dtype).to(like.device)
        return self._knots_cache[key]

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position within the piece (0 to 1), log signal at its start, and its rise over the piece."""
        knots = self._knots(t)
        place = t * self.steps
        # A knot reached from 1 - (n + 1) / N may be rounded down; it still belongs to the piece after it.
        slack = 8 * torch.finfo(t.dtype).eps * self.steps
        index = (place.detach() + slack).floor().clamp(0, self.steps - 1).long()
        return place - index, knots[index], knots[index + 1] - knots[index]

    def _log_signal(self, t: Tensor) -> Tensor:
        return _between(*self._piece(t))

    def _signal(self, t: Tensor) -> Tensor:
        return self._log_signal(t).exp()

    def _noise(self, t: Tensor) -> Tensor:
        return (0.0 - torch.expm1(2 * self._log_signal(t))).sqrt()  # 0 - 0, since -0 would flip rates

    def _lam(self, t: Tensor) -> Tensor:
        log_signal = self._log_signal(t)
        return log_signal - 0.5 * (0.0 - torch.expm1(2 * log_signal)).log()

    def _signal_rate(self, t: Tensor) -> Tensor:
        return self.steps * self._piece(t)[2] * self._signal(t)

    def _signal_signal_rate(self, t: Tensor) -> Tensor:
        return self.steps * self._piece(t)[2] * (2 * self._log_signal(t)).exp()

    def at(self, t: Time) -> PathPoint:
        """Signal, noise and both rates at `t`, from one look at the list of levels instead of seven."""
        times = as_time(t)
        wide = widen(times)
        position, start, rise = self._piece(wide)
        log_signal, slope = _between(position, start, rise), self.steps * rise
        signal, noise = log_signal.exp(), (0.0 - torch.expm1(2 * log_signal)).sqrt()
        columns = (signal, noise, slope * signal, -(slope * (2 * log_signal).exp()) / noise)
        return PathPoint(*(column.to(times.dtype) for column in columns))

    def _time_at(self, lam: Tensor) -> Tensor:
        log_signal = -0.5 * log1p_exp(-2 * lam)
        knots = self._knots(lam)
        index = torch.searchsorted(knots, log_signal.detach().contiguous(), right=True)
        index = (index - 1).clamp(0, self.steps - 1)
        position = (log_signal - knots[index]) / (knots[index + 1] - knots[index])
        return (index + position) / self.steps

    @property
    def lambda_min(self) -> float:
        """The lam of the last training index, which is lam(0)."""
        return self._lam_ends[0]

    @property
    def lambda_max(self) -> float:
        """The lam of training index 0."""
        first = self.alphas_cumprod[0]
        return 0.5 * math.log(first / (1 - first))

    def train_interval(self, prediction: str) -> tuple[float, float]:
        """Times of the training indices N - 1 and 0."""
        check_name("prediction", prediction, PREDICTIONS)
        return 0.0, 1.0 - 1.0 / self.steps

    def __repr__(self) -> str:
        return (
            f"DiscretePath({self.steps} steps, signal^2 from {self.alphas_cumprod[0]:.6g} "
            f"to {self.alphas_cumprod[-1]:.6g})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"alphas_cumprod": self.alphas_cumprod}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "alphas_cumprod", state["alphas_cumprod"])


def _between(position: Tensor, start: Tensor, rise: Tensor) -> Tensor:
    # Counted from the nearer knot the last piece ends at exactly 0.
    return torch.where(position < 0.5, start + position * rise, (start + rise) - (1 - position) * rise)
