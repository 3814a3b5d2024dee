"""The differential equations of a path: probability flow, and SDEs of any noise level, in both directions.

With velocity b and score S, these share one family of marginals for every epsilon(t) >= 0 (Albergo, Boffi and
Vanden-Eijnden, "Stochastic interpolants", section 2.2; Ma et al., "SiT", eq. 5):

    dX = b dt                                          ordinary
    dX = (b + epsilon S) dt + sqrt(2 epsilon) dW       forward, t from 0 to 1
    dX = (b - epsilon S) dt + sqrt(2 epsilon) dW       backward, t from 1 to 0
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .conversions import convert
from .errors import check_name, unknown_name
from .interpolant import StochasticInterpolant
from .latent import ZeroLatent
from .path import PREDICTIONS, GaussianPath
from .tensors import Time, as_float_tensor, as_time, match

Model = Callable[[Tensor, Tensor], Tensor]
Field = Callable[[Time, Tensor], Tensor]
Epsilon = Callable[[Tensor], Tensor]
Process = GaussianPath | StochasticInterpolant

EPSILONS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing_decreasing")
_DIRECTIONS = ("forward", "backward")
_INTERPOLANT_PREDICTIONS = ("velocity", "score")


class SDE(NamedTuple):
    """Drift(t, x) and diffusion(t) of dX = drift dt + diffusion dW; both take t as a float or a tensor."""

    drift: Field
    diffusion: Callable[[Time], Tensor]


def _batch_time(t: Time, x: Tensor) -> Tensor:
    """Times (B,) in the type of `x`; adaptive solvers look a little beyond the end, hence the clamp."""
    times = as_float_tensor(t).to(device=x.device, dtype=x.dtype).clamp(0, 1)
    return times.expand(x.shape[0]) if times.ndim == 0 else times


def _velocity_and_score(
    process: Process, model: Model, prediction: str, score: Model | None, with_score: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """Evaluate (velocity, score) at (t, x) with one call of `model` (and one of `score` if needed)."""
    if isinstance(process, GaussianPath):
        if score is not None:
            raise ValueError("score is for interpolants; a Gaussian path derives the score from its one model")
        check_name("prediction", prediction, PREDICTIONS)

        def gaussian(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
            output, point = model(x, t), process.at(t)
            velocity = convert(x, output, point, prediction, "velocity")
            return velocity, convert(x, output, point, prediction, "score") if with_score else None

        return gaussian
    check_name("prediction of an interpolant", prediction, _INTERPOLANT_PREDICTIONS)
    one_sided = process.gaussian_base and isinstance(process.latent, ZeroLatent)
    if prediction == "score" and process.ends.name != "mirror":
        raise ValueError(
            "the score alone gives the velocity only for the mirror interpolant; "
            "give a velocity model, and the score as score="
        )
    if with_score and prediction == "velocity" and score is None and not one_sided:
        raise ValueError(
            "an SDE of this interpolant needs the score as well; give a model of it as score= "
            "(only a one-sided interpolant without latent noise derives it from the velocity)"
        )

    def general(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        output = model(x, t)
        if prediction == "score":
            return process.velocity_from_score(x.new_zeros(x.shape), output, t), output
        if not with_score:
            return output, None
        if score is not None:
            return output, score(x, t)
        channels = process.channels(x, output, x.new_zeros(x.shape), t)
        return output, process.score_from_channels(channels, t)

    return general


def probability_flow(process: Process, model: Model, prediction: str = "velocity") -> Field:
    """Right-hand side f(t, x) of dX/dt = velocity, in the argument order of torchdiffeq.

    Parameters
    ----------
    process : GaussianPath or StochasticInterpolant
    model : callable
        model(x, t) with x (B, ...) and t (B,).
    prediction : str
        What the model gives: one of `PREDICTIONS` on a Gaussian path; on an interpolant "velocity", or "score"
        for the mirror.

    Raises
    ------
    ValueError
        If the prediction does not determine the velocity.
    """
    evaluate = _velocity_and_score(process, model, prediction, None, with_score=False)

    def field(t: Time, x: Tensor) -> Tensor:
        return evaluate(_batch_time(t, x), x)[0]

    return field


def sde(
    process: Process,
    model: Model,
    prediction: str,
    epsilon: Epsilon | float,
    *,
    direction: str = "forward",
    score: Model | None = None,
) -> SDE:
    """SDE with the marginals of `process` and the noise level `epsilon`, which may be chosen after training.

    Parameters
    ----------
    process, model, prediction
        As in `probability_flow`.
    epsilon : float or callable
        epsilon(t) >= 0, half the squared diffusion; see `epsilon_by_name`.
    direction : str
        "forward" from base to data, or "backward" to be integrated with decreasing t.
    score : callable, optional
        Model of the score, for interpolants whose velocity model does not determine it.

    Returns
    -------
    SDE
        The score is infinite at noise 0, so the drift is for times below 1 (a final step of size 0.02 to 0.04 by
        the data prediction is customary); models of noise or score also exclude signal 0.
    """
    check_name("direction", direction, _DIRECTIONS)
    if not callable(epsilon):
        epsilon = constant_epsilon(epsilon)
    evaluate = _velocity_and_score(process, model, prediction, score, with_score=True)
    sign = 1.0 if direction == "forward" else -1.0

    def drift(t: Time, x: Tensor) -> Tensor:
        times = _batch_time(t, x)
        velocity, gradient = evaluate(times, x)
        assert gradient is not None
        return velocity + sign * match(as_float_tensor(epsilon(times)), x) * gradient

    def diffusion(t: Time) -> Tensor:
        return (2 * as_float_tensor(epsilon(as_time(t)))).sqrt()

    return SDE(drift, diffusion)


def noising_sde(path: GaussianPath) -> SDE:
    """Backward SDE (t from 1 to 0) that turns data into noise without any model.

    It is the backward SDE with the epsilon of `sbdm_epsilon`: the score cancels, and the drift in t is
    (signal_rate / signal) x. Song et al., "Score-based generative modeling through SDEs", eq. 5.
    """
    epsilon = sbdm_epsilon(path)

    def drift(t: Time, x: Tensor) -> Tensor:
        times = _batch_time(t, x)
        return match(path.signal_rate(times) / path.signal(times), x) * x

    def diffusion(t: Time) -> Tensor:
        return (2 * as_float_tensor(epsilon(as_time(t)))).sqrt()

    return SDE(drift, diffusion)


def constant_epsilon(scale: float = 1.0) -> Epsilon:
    """Make epsilon = scale."""
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"epsilon must be finite and not negative, got {scale!r}")
    return lambda t: t.new_full(t.shape, scale)


def sbdm_epsilon(path: GaussianPath, scale: float = 1.0) -> Epsilon:
    """Make epsilon = scale * noise * wronskian / signal, the level of score-based diffusion (beta / 2 on VP).

    Infinite at signal 0: on paths that start from pure noise begin after t = 0.
    """

    def epsilon(t: Tensor) -> Tensor:
        ratio = path.signal_rate(t) / path.signal(t)
        return scale * (ratio * path.noise(t).square() - path.noise_noise_rate(t))

    return epsilon


def sigma_epsilon(path: GaussianPath, scale: float = 1.0) -> Epsilon:
    """Make epsilon = scale * noise(t)."""
    return lambda t: scale * path.noise(t)


def linear_epsilon(scale: float = 1.0) -> Epsilon:
    """Make epsilon = scale * (1 - t)."""
    return lambda t: scale * (1 - t)


def decreasing_epsilon(scale: float = 1.0) -> Epsilon:
    """Make epsilon = (scale * cos(pi t) + 1)^2 / 4."""
    return lambda t: 0.25 * (scale * (math.pi * t).cos() + 1).square()


def increasing_decreasing_epsilon(scale: float = 1.0) -> Epsilon:
    """Make epsilon = scale * sin(pi t)^2."""
    return lambda t: scale * (math.pi * t).sin().square()


def epsilon_by_name(name: str, path: GaussianPath | None = None, scale: float = 1.0) -> Epsilon:
    """Make one of the noise levels offered with SiT (Ma et al.) by name.

    Parameters
    ----------
    name : str
        One of `EPSILONS`.
    path : GaussianPath, optional
        Needed by "sbdm" and "sigma".
    scale : float
        Not negative.

    Raises
    ------
    ValueError
        If the name is unknown, a needed path is missing, or the scale is negative.
    """
    if name not in EPSILONS:
        raise unknown_name("epsilon", name, EPSILONS)
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"scale must be finite and not negative, got {scale!r}")
    if name in ("sbdm", "sigma"):
        if path is None:
            raise ValueError(f"epsilon {name!r} needs a path")
        return sbdm_epsilon(path, scale) if name == "sbdm" else sigma_epsilon(path, scale)
    makers: dict[str, Callable[[float], Epsilon]] = {
        "constant": constant_epsilon,
        "linear": linear_epsilon,
        "decreasing": decreasing_epsilon,
        "increasing_decreasing": increasing_decreasing_epsilon,
    }
    return makers[name](scale)
