"""What a data set is known by when a run goes on from a checkpoint: its content, since its place may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

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
        batch = data.__getitems__(where)
        flat = batch.images.double().flatten(1)
        ramp = torch.linspace(-1.0, 1.0, flat.shape[1], dtype=torch.float64)
        averages = torch.stack([flat.mean(1), (flat * ramp).mean(1)], 1)
        result["averages"] = [[round(value, 6) for value in pair] for pair in averages.tolist()]
        result["labels"] = None if batch.labels is None else batch.labels.tolist()
    return result


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what is not the same of two fingerprints of sets of one size."""
    told = {"shape": "shape (channels, height, width) of the images", "classes": "classes"}
    found = [f"{words} was {before[key]}, is {now[key]}" for key, words in told.items() if before[key] != now[key]]
    if found or "averages" not in before or "averages" not in now:
        return found
    if before["labels"] != now["labels"]:
        found.append("labels of the images are others")
    first, second = (torch.tensor(part["averages"], dtype=torch.float64) for part in (before, now))
    apart = ((first - second).abs() > _SAME * first.abs().clamp(min=1.0)).any(1)
    if bool(apart.any()):
        found.append(f"images are others ({int(apart.sum())} of {len(apart)} looked at)")
    return found
