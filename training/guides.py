"""Small classifiers of noised images, which the losses for wrong labels and biased data are weighted by.

A guide is trained before the network, on the noise levels that its training visits, and kept in a file of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathline.interpolants import GaussianPath, path_from_config
from pathline.interpolants.tensors import match

from .tensor_files import read_metadata, read_tensors, save_tensors

GUIDE_FILE = "guide.safetensors"
_WIDTH, _FREQUENCIES, _SMALLEST_SIDE = 32, 16, 4
_MOST_LAMBDA = 8.0
_BATCH = 256
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 1e-2

Drawn = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
"""(generator, count) to images (B, C, H, W) and what a loss compares with, (B,)."""


class Guide(nn.Module):
    """Logits of an image seen through the noise of a path: (x, t) to (B, outputs).

    What the network itself says is multiplied by signal·spread over the root mean square of the state. So it vanishes
    in pure noise, in proportion to signal / noise as the true logarithm of a ratio of densities does.

    Parameters
    ----------
    path : GaussianPath
    shape : (C, H, W)
    outputs : int
    prior : bool
        Add a learned constant for each output, the answer in pure noise; without, it is 0.
    sigma_data : float
        Standard deviation of the data.
    """

    def __init__(
        self, path: GaussianPath, shape: tuple[int, int, int], outputs: int, prior: bool, sigma_data: float = 0.5
    ) -> None:
        super().__init__()
        self.path, self.sigma_data = path, sigma_data
        self.settings: dict[str, Any] = {
            "path": path.config(),
            "shape": list(shape),
            "outputs": outputs,
            "prior": prior,
            "sigma_data": sigma_data,
        }
        side = min(shape[1:])
        self.enter = nn.Conv2d(shape[0], _WIDTH, 3, padding=1)
        self.level = nn.Sequential(nn.Linear(2 * _FREQUENCIES, 2 * _WIDTH), nn.SiLU())
        blocks, width, height, breadth = [_Block(_WIDTH, _WIDTH, 1)], _WIDTH, shape[1], shape[2]
        while side > _SMALLEST_SIDE:
            blocks.append(_Block(width, min(2 * width, 4 * _WIDTH), 2))
            width, side = min(2 * width, 4 * _WIDTH), (side + 1) // 2
            height, breadth = (height + 1) // 2, (breadth + 1) // 2
        self.blocks = nn.ModuleList(blocks)
        self.leave = nn.Sequential(
            nn.Flatten(), nn.Linear(width * height * breadth, 4 * _WIDTH), nn.SiLU(), nn.Linear(4 * _WIDTH, outputs)
        )
        self.prior = nn.Parameter(torch.zeros(outputs)) if prior else None
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2.0, 2.0, _FREQUENCIES)), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits at states x (B, C, H, W) and times t (B,)."""
        times = t.to(torch.float64)
        signal, noise = self.path.signal(times), self.path.noise(times)
        size = ((signal * self.sigma_data).square() + noise.square()).sqrt()
        lam = self.path.lam(times).clamp(-_MOST_LAMBDA, _MOST_LAMBDA).to(x)
        angles = 0.25 * lam[:, None] * self.frequencies.to(x)  # type: ignore[operator]
        level = self.level(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.enter(x / match(size, x))
        for block in self.blocks:
            h = block(h, level)
        logits: Tensor = self.leave(h) * (signal * self.sigma_data / size).to(x)[:, None]
        return logits if self.prior is None else logits + self.prior

    def save(self, file: Path, about: Mapping[str, Any]) -> None:
        """Write weights and settings; `about` says how it was trained."""
        settings = json.dumps({**self.settings, **about}, sort_keys=True)
        save_tensors(file, dict(self.state_dict()), {"settings": settings})


class _Block(nn.Module):
    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, wider, 3, stride, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, wider), nn.SiLU(), nn.Conv2d(wider, wider, 3, padding=1))
        self.shift = nn.Linear(2 * _WIDTH, wider)
        self.past = nn.Conv2d(width, wider, 1, stride)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        inner = self.first(h) + self.shift(level)[:, :, None, None]
        result: Tensor = self.past(h) + self.second(inner)
        return result


def read_settings(file: Path) -> dict[str, Any]:
    """Settings of a guide's file, and what it was trained as.

    Raises
    ------
    ValueError
        If it is missing or no guide; it is named.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist; a guide is the file {GUIDE_FILE} of a run that trained one")
    text = read_metadata(file).get("settings")
    if text is None:
        raise ValueError(f"{file} is no guide: its metadata has no settings")
    found: dict[str, Any] = json.loads(text)
    return found


def load_guide(file: Path, device: torch.device | str = "cpu") -> Guide:
    """A guide for use: in evaluation mode, its weights without gradients; errors as of `read_settings`."""
    settings = read_settings(file)
    channels, height, width = settings["shape"]
    guide = Guide(
        path_from_config(settings["path"]),
        (channels, height, width),
        settings["outputs"],
        settings["prior"],
        settings["sigma_data"],
    )
    guide.load_state_dict(read_tensors(file))
    return guide.to(device).eval().requires_grad_(False)


def fit_guide(
    guide: Guide,
    draw: Drawn,
    loss: Callable[[Tensor, Tensor], Tensor],
    times: Callable[[Tensor], Tensor],
    *,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> float:
    """Train a guide by AdamW on a cosine schedule; the mean loss of the last tenth of the steps.

    Everything random comes from the seed, so that it is the same guide each time.

    Parameters
    ----------
    guide : Guide
    draw : callable (generator, count) -> images, targets
    loss : callable (logits (B, K), targets (B,)) -> (B,)
    times : callable
        Uniforms in (0, 1) to the times at which the network is trained.
    steps : int
    seed : int
    device : where it is trained
    """
    generator = torch.Generator().manual_seed(seed)
    guide.to(device).train()
    optimizer = torch.optim.AdamW(guide.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen: list[Tensor] = []
    for step in range(steps):
        images, targets = draw(generator, _BATCH)
        noise = torch.randn(images.shape, generator=generator)
        uniforms = torch.rand(len(images), generator=generator, dtype=torch.float64)
        t = times(uniforms.clamp(1e-9, 1 - 1e-9)).to(device)
        images, noise = images.to(device), noise.to(device)
        point = guide.path.at(t)
        x = match(point.signal, images) * images + match(point.noise, images) * noise
        value = loss(guide(x, t), targets.to(device)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step >= 0.9 * steps - 1:
            seen.append(value.detach())
    return float(torch.stack(seen).mean())


def new_guide(
    path: GaussianPath, shape: tuple[int, int, int], outputs: int, prior: bool, sigma_data: float, seed: int
) -> Guide:
    """A guide with weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Guide(path, shape, outputs, prior, sigma_data)
