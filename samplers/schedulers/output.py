"""What a scheduler's `step` returns."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class PathlineSchedulerOutput(BaseOutput):
    """What `step` returns.

    Attributes
    ----------
    prev_sample : Tensor
        State at which the network is called next; after the last call the sample.
    pred_original_sample : Tensor or None
        Data prediction, clipped or thresholded where the config says so; None where the network's output does not
        determine it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
