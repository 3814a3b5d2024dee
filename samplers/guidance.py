"""Guidance: how one guided prediction is made from several network branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Network = Callable[..., Tensor]


class Guidance(Protocol):
    """Anything that turns a network call into a guided output; one such call counts as one evaluation."""

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Return the guided output, of the shape and prediction type of the network's."""
        ...


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance: out = unconditional + scale·(conditional − unconditional) (Ho and Salimans 2022).

    Attributes
    ----------
    scale : float
        1 is the conditional model (one branch only), 0 the unconditional one.
    unconditional : mapping
        Keyword arguments that replace the conditional ones in the unconditional branch.
    batched : bool
        Evaluate both branches in one call of twice the batch.
    """

    scale: float
    unconditional: Mapping[str, Any]
    batched: bool = True

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Guided output from one call of twice the batch, or from two calls."""
        if self.scale == 1.0:
            return network(x, t, **kwargs)
        free = {**kwargs, **self.unconditional}
        if not self.batched:
            conditional, unconditional = network(x, t, **kwargs), network(x, t, **free)
        else:
            missing = self.unconditional.keys() - kwargs.keys()
            if missing:
                raise ValueError(f"guidance replaces {sorted(missing)}, which model_kwargs does not hold")
            joined = {key: _join(kwargs[key], free[key], len(x)) for key in free}
            both = network(torch.cat([x, x]), torch.cat([t, t]), **joined)
            conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)


def _join(conditional: Any, unconditional: Any, batch: int) -> Any:
    if isinstance(conditional, Tensor) and isinstance(unconditional, Tensor) and conditional.shape[:1] == (batch,):
        return torch.cat([conditional, unconditional])
    if conditional is unconditional or (
        type(conditional) is type(unconditional) is not Tensor and conditional == unconditional
    ):
        return conditional
    raise ValueError(
        "batched guidance can join only tensors whose first dimension is the batch; "
        "use ClassifierFree(..., batched=False)"
    )
