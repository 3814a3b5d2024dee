"""Small image classifiers, trained in seconds: one to steer by, and one of another kind to judge what it led to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

KINDS = ("dense", "convolutional")
_BATCH, _RATE = 128, 3e-3


@dataclass(frozen=True)
class Classifier:
    """A network that gives logarithms of class probabilities, and its share of right answers on images kept out."""

    network: nn.Module
    accuracy: float

    def __call__(self, images: Tensor) -> Tensor:
        """Log p(class|image) (B, K) of images (B, C, H, W) in [-1, 1]; differentiable."""
        return torch.log_softmax(self.network(images.float()), dim=1)


def fit_classifier(
    images: Tensor, labels: Tensor, *, kind: str = "dense", steps: int = 600, blur: float = 0.3, seed: int = 0
) -> Classifier:
    """Train on five images of six, with noise of up to `blur` on them, since predicted data are never quite clean.

    Parameters
    ----------
    images : Tensor (n, C, H, W) in [-1, 1]
    labels : Tensor (n,)
    kind : {"dense", "convolutional"}

    Raises
    ------
    ValueError
        Unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not possible; choose one of {', '.join(KINDS)}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    kept, used = order[: len(order) // 6], order[len(order) // 6 :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(kind, tuple(images.shape[1:]), int(labels.max()) + 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = _RATE * (1.0 - step / steps)
        chosen = used[torch.randint(len(used), (_BATCH,), generator=generator)]
        level = blur * torch.rand(_BATCH, 1, 1, 1, generator=generator)
        noisy = images[chosen] + level * torch.randn(images[chosen].shape, generator=generator)
        loss = nn.functional.cross_entropy(network(noisy), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().requires_grad_(False)
    right = network(images[kept]).argmax(1) == labels[kept]
    return Classifier(network, float(right.float().mean()))


def _network(kind: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, height, width = shape
    if kind == "dense":
        size = channels * height * width
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.SiLU(), nn.Linear(128, classes))
    side = (height // 2) * (width // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * side, classes),
    )
