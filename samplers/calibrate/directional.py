"""Directional derivatives of a network's data prediction, by automatic differentiation or by differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pathline.interpolants import check_name, convert

from .trajectories import Problem

Pair = tuple[Tensor, Tensor]
Jvp = Callable[[Callable[..., Tensor], Pair, Pair], Pair]
"""(function, where, along) → (value, directional derivative)."""
_AGREE = 0.1
"""Relative distance to central differences up to which a derivative counts as right; rounded labels miss it."""
_TRIED = 4
"""Samples on which it is tried."""


class LevelPoint(NamedTuple):
    """A level of a path, and how the network's output becomes data there, with rates by λ.

    data = on_x·x + on_out·out; `time_rate` is dt/dλ, `signal_rate` d log(signal)/dλ.
    """

    lam: float
    time: float
    signal: float
    noise: float
    time_rate: float
    signal_rate: float
    on_x: float
    on_out: float
    on_x_rate: float
    on_out_rate: float


def level_point(problem: Problem, lam: float) -> LevelPoint:
    """The point of the problem's path at λ, moved to its end where λ lies beyond.

    Raises
    ------
    ValueError
        The prediction does not determine the data there.
    """
    path = problem.path
    t = path.time_at(torch.tensor([lam], dtype=torch.float64))
    point = path.at(t)
    time_rate = point.signal * point.noise / point.wronskian
    one, none = torch.ones_like(t), torch.zeros_like(t)

    def pair(t: Tensor) -> tuple[Tensor, Tensor]:
        here = path.at(t)
        on_x, on_out = (convert(a, b, here, problem.prediction, "data") for a, b in ((one, none), (none, one)))
        return on_x, on_out

    weights, rates = torch.func.jvp(pair, (t,), (time_rate,))
    entries = (point.lam, t, point.signal, point.noise, time_rate, point.signal_rate / point.signal * time_rate)
    return LevelPoint(*(float(v) for v in (*entries, *weights, *rates)))


class NoDerivativeError(ValueError):
    """Automatic differentiation does not pass through a network."""


class Directional(Protocol):
    """A rule for the derivatives that statistics need."""

    name: str
    calls: int
    """Network calls of one sample at one level."""

    def probe(self, point: LevelPoint, x: Tensor, v: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Data prediction at x, and its derivative along v at a fixed time; float64, as x (B, ...)."""
        ...

    def flow(self, point: LevelPoint, x: Tensor, rate: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Derivative of the data prediction by λ along x + rate·(λ' − λ)."""
        ...


def choose_rule(
    name: str, problem: Problem, step: float, point: LevelPoint, x: Tensor, rate: Tensor, kwargs: Mapping[str, Any]
) -> Directional:
    """The rule `name`, or for "auto" the first that works and agrees with central differences along the flow.

    Parameters
    ----------
    name : {"auto", "forward", "backward", "difference"}
    problem : Problem
    step : float
        Half-width of differences.
    point, x, rate, kwargs
        Where to try: a level, states of it, their rates by λ, and arguments of the model.

    Raises
    ------
    ValueError
        Unknown name.
    """
    check_name("derivative", name, ["auto", *RULES])
    if name != "auto":
        return RULES[name](problem, step)
    rows = slice(0, min(_TRIED, len(x)))
    few = problem.part(rows, len(x))
    kwargs = {k: v[rows] if isinstance(v, Tensor) and v.shape[:1] == (len(x),) else v for k, v in kwargs.items()}
    difference = Difference(few, step)
    wanted = difference.flow(point, x[rows], rate[rows], kwargs)
    for rule in ("forward", "backward"):
        try:
            found = RULES[rule](few, step).flow(point, x[rows], rate[rows], kwargs)
        except NoDerivativeError:
            continue
        if float((found - wanted).norm()) <= _AGREE * float(wanted.norm()):
            return RULES[rule](problem, step)
    return Difference(problem, step)


class _Differentiated:
    """Rules by automatic differentiation: value and derivative of the raw output at once."""

    name: str
    calls: int
    _extra: int  # calls beyond the one the problem counts itself, for each derivative
    _derivative: Jvp

    def __init__(self, problem: Problem, step: float) -> None:
        self.problem = problem

    def probe(self, point: LevelPoint, x: Tensor, v: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """See `Directional`."""
        out, slope = self._both(point, x, v, 0.0, kwargs)
        return point.on_x * x.double() + point.on_out * out, point.on_x * v + point.on_out * slope

    def flow(self, point: LevelPoint, x: Tensor, rate: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """See `Directional`."""
        out, slope = self._both(point, x, rate, point.time_rate, kwargs)
        moved = point.on_x_rate * x.double() + point.on_out_rate * out
        return moved + point.on_x * rate + point.on_out * slope

    def _both(
        self, point: LevelPoint, x: Tensor, dx: Tensor, dt: float, kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        self.problem.require((1 + self._extra) * len(x), f"a derivative of a batch of {len(x)}")
        t = _times(point, x)
        try:
            with _plain_attention():
                out, slope = self._derivative(
                    lambda x, t: self.problem(x, t, **kwargs), (x, t), (dx.to(x.dtype), torch.full_like(t, dt))
                )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise NoDerivativeError(
                f"derivative={self.name!r} does not pass through this network ({str(error).splitlines()[0]}); give "
                "derivative='difference', which every network passes, or 'auto'"
            ) from error
        self.problem.charge(self._extra * len(x))
        return out.detach().double(), slope.detach().double()


def _forward(function: Callable[..., Tensor], at: Pair, along: Pair) -> Pair:
    with torch.no_grad():
        out, slope = torch.func.jvp(function, at, along)
    return out, slope


def _backward(function: Callable[..., Tensor], at: Pair, along: Pair) -> Pair:
    with torch.enable_grad():
        out, slope = torch.autograd.functional.jvp(function, at, along)
    return out, slope


class Forward(_Differentiated):
    """Forward-mode AD: every operation is done twice, so that a derivative counts as two calls."""

    name = "forward"
    calls = 4
    _extra = 1
    _derivative = staticmethod(_forward)


class Backward(_Differentiated):
    """Double backward: a call, its gradient with a graph, and the gradient of that take about five calls."""

    name = "backward"
    calls = 10
    _extra = 4
    _derivative = staticmethod(_backward)


class Difference:
    """Central differences of half-width `step`, in λ along the flow and in units of the noise along probes."""

    name = "difference"
    calls = 5

    def __init__(self, problem: Problem, step: float) -> None:
        self.problem, self.step = problem, step

    def probe(self, point: LevelPoint, x: Tensor, v: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """See `Directional`."""
        h = self.step * point.noise
        above, below = (self._data(point, (x.double() + sign * h * v).to(x.dtype), kwargs) for sign in (1.0, -1.0))
        return self._data(point, x, kwargs), (above - below) / (2 * h)

    def flow(self, point: LevelPoint, x: Tensor, rate: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """See `Directional`; one-sided at the ends of the path."""
        above, below = (level_point(self.problem, point.lam + sign * self.step) for sign in (1.0, -1.0))
        ends = [self._data(p, (x.double() + (p.lam - point.lam) * rate).to(x.dtype), kwargs) for p in (above, below)]
        return (ends[0] - ends[1]) / (above.lam - below.lam)

    def _data(self, point: LevelPoint, x: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        with torch.no_grad():
            out = self.problem(x, _times(point, x), **kwargs)
        return point.on_x * x.double() + point.on_out * out.double()


RULES: dict[str, Callable[[Problem, float], Directional]] = {
    "forward": Forward,
    "backward": Backward,
    "difference": Difference,
}


def _times(point: LevelPoint, x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.full((len(x),), point.time, dtype=dtype, device=x.device)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention written out in plain operations, which AD passes and fused kernels do not."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
