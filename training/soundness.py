"""Stops a run before numbers that are not finite reach the weights, a checkpoint or the result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .checkpoints import newest_sound
from .outcome import NonFiniteLossError
from .tasks import Samples, Task

_SKIPPED = 50  # a loss scale halved so often is below any that helps


class SoundnessCheck:
    """Looks at losses and gradients before each optimiser step, and at the weights before they are written.

    Parameters
    ----------
    task : Task
        Gives noise levels their words.
    folder : Path
        Where the checkpoints are.
    scaled : bool
        Whether the loss is scaled (fp16): the scaler then skips steps whose gradient overflows, and makes the scale
        smaller, so that only many of them in a row are an error.
    """

    def __init__(self, task: Task, folder: Path, scaled: bool) -> None:
        self.task, self.folder, self.scaled = task, folder, scaled
        self._skipped = 0

    def before_step(self, step: int, losses: Tensor, times: Tensor, norm: float) -> None:
        """Refuse to take optimiser step `step`.

        Parameters
        ----------
        step : int
            Counted from 1.
        losses, times : float64 Tensors (B,), on the CPU
            Of all micro-batches of this process.
        norm : float
            Of the gradient, before it was clipped.

        Raises
        ------
        NonFiniteLossError
            If a loss or the norm is NaN or infinite; it says at which noise levels.
        """
        bad = ~torch.isfinite(losses)
        if bool(bad.any()):
            worst = int(bad.nonzero()[0])
            self._refuse(
                f"loss is {float(losses[worst])} at optimiser step {step}, at {self._level(float(times[worst]))}, for "
                f"{int(bad.sum())} of {len(losses)} samples; the weights were left as they were"
            )
        if math.isfinite(norm):
            self._skipped = 0
            return
        self._skipped += 1
        if self.scaled and self._skipped < _SKIPPED:
            return
        again = f" and at the {_SKIPPED - 1} before it" if self.scaled else ""
        self._refuse(
            f"norm of the gradient is {norm} at optimiser step {step}{again}, with losses up to "
            f"{float(losses.max()):.4g}, at noise levels from {self._level(float(times.min()))} to "
            f"{self._level(float(times.max()))}; the weights were left as they were"
        )

    def before_writing(self, step: int, network: nn.Module, model: Any, samples: Samples) -> None:
        """Refuse to write weights that are not finite, or with which a loss is not.

        Parameters
        ----------
        step : int
            Optimiser steps taken.
        network : nn.Module
        model : callable
            From `task.wrap`, with the network inside.
        samples : Samples
            A few to try it on.

        Raises
        ------
        NonFiniteLossError
        """
        self.check_weights(step, network)
        training = network.training
        network.eval()  # no dropout: it would move the generator that training draws from
        with torch.no_grad():
            losses = self.task.losses(model, samples).double().cpu()
        network.train(training)
        bad = ~torch.isfinite(losses)
        if bool(bad.any()):
            worst = int(bad.nonzero()[0])
            self._refuse(
                f"the weights after optimiser step {step} give a loss of {float(losses[worst])} at "
                f"{self._level(float(samples.times[worst]))}; they were not saved"
            )

    def check_weights(self, step: int, network: nn.Module) -> None:
        """Raise NonFiniteLossError if a weight is NaN or infinite; one wait for the device."""
        names = [name for name, _ in network.named_parameters()]
        sound = torch.stack([torch.isfinite(value.detach()).all() for value in network.parameters()]).cpu()
        if not bool(sound.all()):
            bad = [name for name, fine in zip(names, sound.tolist(), strict=True) if not fine]
            self._refuse(
                f"{len(bad)} of {len(names)} parameters ({', '.join(bad[:3])}) are not finite after optimiser step "
                f"{step}; they were not saved"
            )

    def _level(self, t: float) -> str:
        return f"time {t:.4f} ({self.task.level(t)})"

    def _refuse(self, what: str) -> NoReturn:
        saved = newest_sound(self.folder)
        last = "there is no checkpoint yet" if saved is None else f"the last checkpoint is {saved}"
        raise NonFiniteLossError(f"{what}. Try a lower learning rate; {last}")
