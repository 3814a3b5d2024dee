"""Counting at the network: what a sampler costs is measured, never inferred from its steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class CountedModel:
    """A model that counts the samples it was evaluated on; attributes of the wrapped model show through."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows = 0

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Evaluate and add the batch size to ``rows``."""
        self.rows += len(x)
        return self.model(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not yet set, as when unpickled
            raise AttributeError(name)
        return getattr(self.model, name)


class CountedGuidance:
    """Guidance that counts guided evaluations; the pair of branches behind one of them counts once here."""

    def __init__(self, guidance: Any) -> None:
        self.guidance = guidance
        self.rows = 0

    @property
    def scale(self) -> Any:
        """Of the guidance, None where it has none."""
        return getattr(self.guidance, "scale", None)

    def __call__(self, network: Any, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Guide and add the batch size to ``rows``."""
        self.rows += len(x)
        return self.guidance(network, x, t, kwargs)
