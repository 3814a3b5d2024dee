"""Stochastic interpolants between two arbitrary ends.

The state is base(t) * x0 + data(t) * x1 + latent(t) * z with z ~ N(0, I) independent of the pair (x0, x1), which
may have any coupling. Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows
and diffusions". With the three conditional means eta0 = E[x0|x], eta1 = E[x1|x], etaz = E[z|x]:

    base * eta0 + data * eta1 + latent * etaz = x                               (one of them is redundant)
    velocity = base' * eta0 + data' * eta1 + latent' * etaz
    score    = -etaz / latent
    velocity = (base' * eta0 + data' * eta1) - (latent latent') * score         (finite where latent' is not)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .ends import EncoderDecoderEnds, EndPair, LinearEnds, MirrorEnds, TrigonometricEnds
from .errors import check_name
from .latent import BrownianLatent, LatentCoefficient, ZeroLatent, latent_by_name
from .tensors import Time, as_time, in_wide_precision, match, time_for

INTERPOLANTS = (
    "linear",
    "trigonometric",
    "encoder_decoder",
    "mirror",
    "one_sided_linear",
    "one_sided_trigonometric",
)


class InterpolantPoint(NamedTuple):
    """Coefficients of an interpolant at some times, tensors of one shape."""

    base: Tensor
    data: Tensor
    latent: Tensor
    base_rate: Tensor
    data_rate: Tensor
    latent_rate: Tensor
    gamma_gamma_rate: Tensor


class Channels(NamedTuple):
    """Conditional means given the state: of the base, of the data, of the latent noise; each (B, ...)."""

    base: Tensor
    data: Tensor
    latent: Tensor


@dataclass(frozen=True)
class StochasticInterpolant:
    """The interpolant with the given coefficients.

    Parameters
    ----------
    ends : EndPair
        Weights of base and data.
    latent : LatentCoefficient
        Weight of the latent noise.
    gaussian_base : bool
        True if the base is N(0, I), independent of the data ("one-sided"); the score then follows from the
        conditional mean of the base.
    """

    ends: EndPair
    latent: LatentCoefficient = field(default_factory=ZeroLatent)
    gaussian_base: bool = False

    def at(self, t: Time) -> InterpolantPoint:
        """All coefficients at times of any shape; floats are evaluated in float64."""
        times = as_time(t)
        functions = (
            self.ends.base,
            self.ends.data,
            self.latent.value,
            self.ends.base_rate,
            self.ends.data_rate,
            self.latent.rate,
            self.latent.product,
        )
        return InterpolantPoint(*(in_wide_precision(function, times) for function in functions))

    def gamma_gamma_rate(self, t: Time) -> Tensor:
        """Latent coefficient times its rate, finite on all of [0, 1]."""
        return in_wide_precision(self.latent.product, as_time(t))

    def sample(self, base: Tensor, data: Tensor, latent: Tensor, t: Time) -> Tensor:
        """State for base, data and latent noise of shape (B, ...) and times of shape () or (B,)."""
        point = self.at(time_for(t, data))
        return match(point.base, data) * base + match(point.data, data) * data + match(point.latent, data) * latent

    def mean_rate(self, base: Tensor, data: Tensor, t: Time) -> Tensor:
        """Rate of the state without its latent part, base' * x0 + data' * x1; finite at the ends."""
        point = self.at(time_for(t, data))
        return match(point.base_rate, data) * base + match(point.data_rate, data) * data

    def velocity(self, base: Tensor, data: Tensor, latent: Tensor, t: Time) -> Tensor:
        """Conditional velocity, the target of training; infinite at the ends for a Brownian latent."""
        point = self.at(time_for(t, data))
        return self.mean_rate(base, data, t) + match(point.latent_rate, data) * latent

    def velocity_from_score(self, mean_rate: Tensor, score: Tensor, t: Time) -> Tensor:
        """Velocity from E[mean_rate|x] and the score: mean_rate - (latent latent') * score."""
        product = self.gamma_gamma_rate(time_for(t, score))
        return mean_rate - match(product, score) * score

    def complete(
        self,
        x: Tensor,
        t: Time,
        *,
        base: Tensor | None = None,
        data: Tensor | None = None,
        latent: Tensor | None = None,
    ) -> Channels:
        """Give all three conditional means from two of them.

        Parameters
        ----------
        x : Tensor, shape (B, ...)
        t : float or Tensor of shape () or (B,)
        base, data, latent : Tensor, shape (B, ...), optional
            Exactly two of E[x0|x], E[x1|x], E[z|x]. The third comes from base * eta0 + data * eta1 +
            latent * etaz = x, so its coefficient must not be 0.

        Raises
        ------
        ValueError
            If not exactly two are given.
        """
        given = [base, data, latent]
        if sum(channel is None for channel in given) != 1:
            raise ValueError("complete needs exactly two of base, data and latent")
        weights = [match(entry, x) for entry in self.at(time_for(t, x))[:3]]
        rest = x
        for weight, channel in zip(weights, given, strict=True):
            if channel is not None:
                rest = rest - weight * channel
        full = [rest / weight if channel is None else channel for weight, channel in zip(weights, given, strict=True)]
        return Channels(*full)

    def channels(self, x: Tensor, velocity: Tensor, score: Tensor, t: Time) -> Channels:
        """Give the three conditional means from velocity and score.

        Solves base * eta0 + data * eta1 = x + latent^2 * score and base' * eta0 + data' * eta1 = velocity +
        (latent latent') * score; defined where base * data' - base' * data is not 0 (everywhere for the linear
        and trigonometric families).
        """
        point = self.at(time_for(t, x))
        a, b, g, da, db, _, product = (match(entry, x) for entry in point)
        first, second = x + g.square() * score, velocity + product * score
        determinant = a * db - da * b
        return Channels((db * first - b * second) / determinant, (a * second - da * first) / determinant, -g * score)

    def score_from_channels(self, channels: Channels, t: Time) -> Tensor:
        """Score from the conditional means: -etaz / latent, or -eta0 / base if only the base is Gaussian."""
        point = self.at(time_for(t, channels.data))
        if self.gaussian_base and isinstance(self.latent, ZeroLatent):
            return -channels.base / match(point.base, channels.base)
        return -channels.latent / match(point.latent, channels.latent)

    def velocity_from_channels(self, channels: Channels, t: Time) -> Tensor:
        """Velocity from the conditional means; needs a finite latent rate (t inside (0, 1) for Brownian)."""
        point = self.at(time_for(t, channels.data))
        rates = (point.base_rate, point.data_rate, point.latent_rate)
        base, data, latent = (match(rate, mean) * mean for rate, mean in zip(rates, channels, strict=True))
        return base + data + latent


class BrownianBridge(StochasticInterpolant):
    """The linear interpolant with latent variance diffusivity * t (1 - t): Brownian bridges pinned at pairs.

    Parameters
    ----------
    diffusivity : float
        Variance per unit time of the underlying Brownian motion; the largest variance, at t = 1/2, is a quarter
        of it (the BBDM schedule of maximal variance s / 2 has diffusivity 2 s).
    """

    def __init__(self, diffusivity: float = 1.0) -> None:
        super().__init__(LinearEnds(), BrownianLatent(diffusivity))

    @property
    def diffusivity(self) -> float:
        """Variance per unit time of the underlying Brownian motion."""
        assert isinstance(self.latent, BrownianLatent)
        return self.latent.diffusivity

    def transition(self, x: Tensor, data: Tensor, time: float, next_time: float) -> tuple[Tensor, float]:
        """Mean and standard deviation at `next_time`, given the state `x` at `time` and the data.

        Raises
        ------
        ValueError
            Unless 0 <= time < next_time <= 1.
        """
        if not 0.0 <= time < next_time <= 1.0:
            raise ValueError(f"needs 0 <= time < next_time <= 1, got time={time!r}, next_time={next_time!r}")
        share = (next_time - time) / (1 - time)
        variance = self.diffusivity * share * (1 - next_time)
        return x + share * (data - x), variance**0.5


def interpolant_by_name(
    name: str, latent: str | LatentCoefficient | None = None, **options: Any
) -> StochasticInterpolant:
    """Make a family of interpolants by name.

    Parameters
    ----------
    name : str
        One of `INTERPOLANTS`.
    latent : str or LatentCoefficient, optional
        Name as in `list_latents` or an object. Left out: Brownian; sin_squared for encoder_decoder; zero for
        the one-sided families.
    **options : float
        Parameters of a latent given by name (or of the default one).

    Raises
    ------
    ValueError
        If a name is unknown, or the latent does not suit the family: encoder_decoder and mirror need one that
        is not zero, trigonometric one below 1.
    """
    check_name("interpolant", name, INTERPOLANTS)
    one_sided = name.startswith("one_sided_")
    family = name.removeprefix("one_sided_")
    if latent is None:
        latent = "zero" if one_sided else "sin_squared" if family == "encoder_decoder" else "brownian"
    if isinstance(latent, str):
        latent = latent_by_name(latent, **options)
    elif options:
        raise ValueError(f"options {sorted(options)} belong to a latent given by name, not to an object")
    if family in ("encoder_decoder", "mirror") and isinstance(latent, ZeroLatent):
        raise ValueError(f"the {family} interpolant needs a latent coefficient that is not zero")
    families: dict[str, Callable[[], EndPair]] = {
        "linear": LinearEnds,
        "trigonometric": lambda: TrigonometricEnds(latent),
        "encoder_decoder": EncoderDecoderEnds,
        "mirror": MirrorEnds,
    }
    return StochasticInterpolant(families[family](), latent, gaussian_base=one_sided)
