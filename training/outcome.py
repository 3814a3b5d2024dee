"""How a training run ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class TrainingInterruptedError(RuntimeError):
    """The run was asked to stop; its message names the checkpoint from which it can go on."""


class NonFiniteLossError(RuntimeError):
    """A loss, the gradient or a weight was NaN or infinite; its message names step, noise level and last checkpoint.

    Weights that are not finite, or give such a loss, are not written.
    """


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its folder, steps done in all, mean loss of the last steps, seconds it took."""

    folder: Path
    steps: int
    loss: float
    seconds: float
