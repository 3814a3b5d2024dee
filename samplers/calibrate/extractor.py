"""Feature spaces in which a table may be fitted, and the rule that none of them judges it afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..table import Table

KEY = "fitted_features"
"""Under it a table's options and provenance name the extractor it was fitted with."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A differentiable map from data to features, such as a network's activations, with a name that tables keep.

    Attributes
    ----------
    features : callable (B, ...) -> Tensor (B, ...) or sequence of them
        Of several outputs (layers) each counts the same. Weights are those of a torch module, or of an attribute
        `network` that is one. LPIPS-like distances normalise and weigh within it.
    name : str
        Of the space, as reports call it: "effnet-lite0", "inception", "vgg16". Two extractors of one name are the same.

    Raises
    ------
    ValueError
        An empty name, or features that cannot be called.
    """

    features: Callable[[Tensor], Tensor | Sequence[Tensor]]
    name: str

    def __post_init__(self) -> None:
        if not callable(self.features) or not self.name.strip():
            raise ValueError(f"features={self.features!r} and name={self.name!r} must be a function and a name")

    @property
    def marker(self) -> dict[str, str]:
        """What a table keeps: the name, and a hash of the weights where `features` is or has a torch module."""
        network = getattr(self.features, "network", None)
        network = self.features if isinstance(self.features, torch.nn.Module) else network
        if not isinstance(network, torch.nn.Module):
            return {"name": self.name}
        return {"name": self.name, "weights": digest_of(network.state_dict())}

    def errors(self, x: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """Root mean square difference (B,) of the features of `x` to `wanted`, as `of` gives them."""
        squares = [(a - b).flatten(1).square().mean(1) for a, b in zip(self.of(x), wanted, strict=True)]
        return (torch.stack(squares).mean(0) + 1e-24).sqrt()

    def of(self, x: Tensor) -> list[Tensor]:
        """Features as a list.

        Raises
        ------
        ValueError
            An output that is no tensor of one row for each sample.
        """
        found = self.features(x)
        layers = [found] if isinstance(found, Tensor) else list(found)
        for layer in layers:
            if not isinstance(layer, Tensor) or layer.shape[:1] != x.shape[:1]:
                shape = tuple(layer.shape) if isinstance(layer, Tensor) else type(layer).__name__
                raise ValueError(f"extractor {self.name!r} returned {shape} for {len(x)} samples")
        return layers


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors, such as the weights of a module, whatever their order, device and precision."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(key.encode() + value.detach().cpu().double().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fitted_features(table: Table) -> str | None:
    """Name of the feature space that a table was fitted in, None where there was none.

    It is kept in the options too, which `Table.released` does not drop.
    """
    marker = marker_of(table)
    return None if marker is None else str(marker["name"])


def marker_of(table: Table) -> dict[str, str] | None:
    """What a table keeps of its extractor (`Extractor.marker`), None where there was none."""
    for holder in (table.provenance, table.options):
        if isinstance(marker := holder.get(KEY), dict) and "name" in marker:
            return dict(marker)
    return None


def check_judge(table: Table, space: str, network: torch.nn.Module | None = None) -> None:
    """Raise where `table` was fitted in the feature space `space`, which then says nothing about its quality.

    Parameters
    ----------
    table : Table
    space : str
        Name of the space that is to report; what follows a colon (an argument) does not count.
    network : torch module, optional
        Of the space; the same weights under another name are the same space.

    Raises
    ------
    ValueError
    """
    if (marker := marker_of(table)) is None:
        return
    used = str(marker["name"])
    same = used.partition(":")[0].strip().lower() == space.partition(":")[0].strip().lower()
    if not same and network is not None and "weights" in marker:
        same = digest_of(network.state_dict()) == marker["weights"]
    if same:
        raise ValueError(
            f"table {table.method!r} was fitted with the feature extractor {used!r}, so that distances in {space!r} "
            "are no evidence; report in another feature space"
        )
