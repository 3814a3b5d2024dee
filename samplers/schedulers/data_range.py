"""The range of the data in a scheduler's config: `clip_sample`, `thresholding` and their numbers as a rule."""

from __future__ import annotations

from typing import Any

from ..thresholding import DynamicThreshold, StaticThreshold

Rule = StaticThreshold | DynamicThreshold


def rule_of(config: Any) -> Rule | None:
    """What a config does to the data prediction; `thresholding` goes before `clip_sample`, as in diffusers.

    Read anew by every `set_timesteps`: pipelines of latent models turn `clip_sample` off in the config of the
    scheduler they are given.

    Raises
    ------
    ValueError
        A number out of range, of a rule that is on.
    """
    if config.get("thresholding"):
        ratio, largest = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        try:
            return DynamicThreshold(float(ratio), max_value=float(largest))
        except ValueError as error:
            raise ValueError(
                f"thresholding of the scheduler's config, with dynamic_thresholding_ratio={ratio!r} (percentile) and "
                f"sample_max_value={largest!r} (max_value): {error}"
            ) from None
    if config.get("clip_sample"):
        limit = config["clip_sample_range"]
        try:
            return StaticThreshold(float(limit))
        except ValueError as error:
            raise ValueError(
                f"clip_sample of the scheduler's config, with clip_sample_range={limit!r} (limit): {error}"
            ) from None
    return None
