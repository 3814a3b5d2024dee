"""A training run from options by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .options import TrainOptions, merge_options
from .outcome import TrainResult
from .resolve import resolve_options
from .trainer import Trainer


def train_model(options: TrainOptions | Mapping[str, Any] | None = None, **overrides: Any) -> TrainResult:
    """Train a network and write the result as a diffusers pipeline folder.

    Parameters
    ----------
    options : TrainOptions or mapping, optional
        Options by name; what is left out comes from the presets.
    **overrides
        Single options, over those of `options`.

    Raises
    ------
    ValueError
        Before any work, if an option, the data, a checkpoint or the hub does not fit; it says what is allowed.
    TrainingInterruptedError
        After Ctrl-C or SIGTERM, when a checkpoint has been written.
    NonFiniteLossError
        If a loss, the gradient or a weight is NaN or infinite.
    """
    base = options.to_dict() if isinstance(options, TrainOptions) else dict(options or {})
    return Trainer(resolve_options(merge_options(base, overrides))).run()
