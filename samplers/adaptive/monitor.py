"""What an adaptive run has done so far, and the errors that say why it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.interpolants import check_name

from ..run_state import NonFiniteError

NORMS = ("worst", "mean")


class AdaptiveError(RuntimeError):
    """An adaptive run was given up; the message says where, with which step and error, and what to change."""


def error_norm(name: str) -> Callable[[Tensor], Tensor]:
    """Norm (B, ...) → () of errors in units of their tolerance.

    "worst" is the largest root mean square of a sample, so that no sample hides behind the others; "mean" is the root
    mean square over the whole batch, the default of torchdiffeq.
    """
    check_name("norm", name, NORMS)

    def mean(error: Tensor) -> Tensor:
        return error.detach().square().mean().sqrt()

    def worst(error: Tensor) -> Tensor:
        return error.detach().square().reshape(len(error), -1).mean(1).sqrt().max()

    return worst if name == "worst" else mean


def check_tolerances(rtol: float, atol: float) -> None:
    """Raise ValueError unless rtol ≥ 0 and atol > 0 are finite."""
    if not 0.0 <= rtol < math.inf:
        raise ValueError(f"rtol={rtol!r} is not possible; it must be finite and not negative")
    if not 0.0 < atol < math.inf:
        raise ValueError(f"atol={atol!r} is not possible; it must be finite and above 0")


@dataclass
class Monitor:
    """Counts steps, watches the limits and words the errors.

    Attributes
    ----------
    method : str
    cap : int or None
        Largest number of network calls.
    floor : float
        Smallest step, in the unit of the variable that is stepped; set by the method.
    label : function place -> str
        Words for a place in that variable.
    advice : str
        What the user can change, appended to every message.
    accepted, rejected : int
    """

    method: str
    cap: int | None
    floor: float = 0.0
    label: Callable[[float], str] = "{:g}".format
    advice: str = ""
    accepted: int = 0
    rejected: int = 0
    place: float = math.nan
    step: float = math.nan
    error: float = math.nan

    def trying(self, place: float, step: float, last: bool = False) -> None:
        """A step of this size is about to be tried; `last` steps are cut to reach the end and may be tiny.

        Raises
        ------
        AdaptiveError
            The step is below the floor.
        """
        self.place, self.step = place, step
        if not last and not step >= self.floor:
            raise self.stuck()

    def stuck(self) -> AdaptiveError:
        """The error of a run whose steps fall below the floor."""
        return AdaptiveError(
            f"{self.method!r} needs a step below min_step={self.floor:.3g} at {self._where()}; the field may be "
            f"discontinuous or the tolerance out of reach. {self.advice}"
        )

    def measured(self, error: Tensor) -> Tensor:
        """Note the error of the step in units of the tolerance; returns it unchanged.

        Raises
        ------
        NonFiniteError
            It is not a number.
        """
        self.error = float(error)
        if not math.isfinite(self.error):
            raise NonFiniteError(f"{self.method!r} met a non-finite value at {self._where()}")
        return error

    def finished(self, accepted: bool) -> None:
        """Count a step."""
        self.accepted += accepted
        self.rejected += not accepted

    def calling(self, calls: int) -> None:
        """A network call is about to be made after `calls` ones.

        Raises
        ------
        AdaptiveError
            There would be more than the cap.
        """
        if self.cap is not None and calls >= self.cap:
            raise AdaptiveError(
                f"{self.method!r} is not done after nfe={self.cap} calls; it is at {self._where()} with "
                f"{self.accepted} accepted and {self.rejected} rejected steps. Raise nfe. {self.advice}"
            )

    def checked(self, output: Tensor, time: float) -> Tensor:
        """The network's output, if it is finite.

        Raises
        ------
        NonFiniteError
            It is not; a step control would shrink its steps forever.
        """
        if not bool(torch.isfinite(output).all()):
            raise NonFiniteError(f"{self.method!r} met a non-finite prediction at time {time:g}, {self._where()}")
        return output

    def _where(self) -> str:
        if math.isnan(self.place):
            return "the start"
        error = "" if math.isnan(self.error) else f", error {self.error:.3g} of 1"
        return f"{self.label(self.place)} (step {self.step:.3g}{error})"
