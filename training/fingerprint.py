"""What a data set is known by when a run goes on from a checkpoint: its content, since its place may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .data import ImageSet

_LOOKED_AT = 16
_SAME = 4e-3  # half a grey level: other libraries decode and resize with other roundings


def fingerprint(data: ImageSet, look: bool = True) -> dict[str, Any]:
    """Shape, classes and two averages of each of a few images spread over the set, for JSON.

    Parameters
    ----------
    data : ImageSet
    look : bool
        Whether images can be had already.

    Returns
    -------
    dict
        With look also the mean and the mean on a ramp over all pixels, which knows a mirrored image from its
        original, and the labels.
    """
    result: dict[str, Any] = {"shape": list(data.shape), "classes": list(data.classes)}
    if look:
        where = torch.linspace(0, len(data) - 1, min(len(data), _LOOKED_AT)).round().long().tolist()
        single = [data.__getitems__([index]) for index in where]  # sizes may differ
        result["averages"] = [_averages(batch.images[0]) for batch in single]
        if single[0].vectors is not None:
            told = [batch.vectors[0].tolist() for batch in single if batch.vectors is not None]
            result["vectors"] = [[round(value, 5) for value in row] for row in told]
        labels = [int(batch.labels[0]) for batch in single if batch.labels is not None]
        result["labels"] = labels or None
    return result


def _averages(image: Tensor) -> list[float]:
    flat = image.double().flatten()
    ramp = torch.linspace(-1.0, 1.0, len(flat), dtype=torch.float64)
    return [round(float(value), 6) for value in (flat.mean(), (flat * ramp).mean())]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what is not the same of two fingerprints of sets of one size."""
    told = {"shape": "shape (channels, height, width) of the images", "classes": "classes"}
    found = [f"{words} was {before[key]}, is {now[key]}" for key, words in told.items() if before[key] != now[key]]
    if found or "averages" not in before or "averages" not in now:
        return found
    if before["labels"] != now["labels"]:
        found.append("labels of the images are others")
    if before.get("vectors") != now.get("vectors"):
        found.append("conditions of the images are others")
    first, second = (torch.tensor(part["averages"], dtype=torch.float64) for part in (before, now))
    apart = ((first - second).abs() > _SAME * first.abs().clamp(min=1.0)).any(1)
    if bool(apart.any()):
        found.append(f"images are others ({int(apart.sum())} of {len(apart)} looked at)")
    return found
