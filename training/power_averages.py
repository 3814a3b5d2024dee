"""Power-function averages kept during training, their snapshots, and networks of any averaging length made of them.

Karras et al., "Analyzing and improving the training dynamics of diffusion models" (arXiv:2312.02696), section 3;
`power_ema` has the mathematics. Time is counted in optimiser steps.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .ema import WEIGHTS_FILE, NetworkAverage
from .export import export_pipeline, skip_scaling_of
from .files import read_json, write_json
from .networks import build_network
from .options import RUN_ONLY
from .power_ema import Profile, combination, decay, exponent_of, misfit
from .skip_scaling import install_skip_scaling
from .tensor_files import read_metadata, read_tensors, save_tensors

SNAPSHOTS = "ema_snapshots"
RUN_FILE = "run.json"
_NAME = re.compile(r"step-(\d+)\.safetensors")
_WORST = 0.25  # relative L² distance of profiles; a tracked average and one a quarter longer are 0.15 apart


class PowerAverages(NetworkAverage):
    """Averages of the parameters of a network under several power-function profiles; the first is what is sampled.

    Parameters
    ----------
    network : nn.Module
        Whose weights are averaged; the first update copies them.
    stds : sequence of float in (0, 0.28]
        Relative standard deviations of the profiles; two, such as (0.05, 0.10), allow any length to be made of
        snapshots.

    Raises
    ------
    ValueError
        No or an impossible length, or the same one twice.
    """

    def __init__(self, network: nn.Module, stds: Sequence[float] = (0.05, 0.10)) -> None:
        if not stds or len(set(stds)) < len(stds):
            raise ValueError(f"ema_stds must be different relative standard deviations, got {list(stds)}")
        for std in stds:
            exponent_of(std)
        self.stds = tuple(stds)
        self.updates = 0
        self._names = [name for name, _ in network.named_parameters()]
        self._averages = [[p.detach().clone() for p in network.parameters()] for _ in stds]

    @property
    def decay(self) -> float:
        """Decay of the latest update of the first average; 0 before and at the first, which copies."""
        return decay(self.stds[0], self.updates, 1.0) if self.updates else 0.0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Count one step and move every average towards the network's present weights."""
        self.updates += 1
        present = [parameter.detach() for parameter in network.parameters()]
        for std, average in zip(self.stds, self._averages, strict=True):
            torch._foreach_lerp_(average, present, 1.0 - decay(std, self.updates, 1.0))

    def copy_to(self, network: nn.Module) -> None:
        """Overwrite the network's weights by the first average."""
        with torch.no_grad():
            for parameter, value in zip(network.parameters(), self._averages[0], strict=True):
                parameter.copy_(value)

    def save(self, folder: Path) -> None:
        """Write all averages as safetensors into the folder of a checkpoint."""
        self.write(folder / WEIGHTS_FILE, {})

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write all averages into a file."""
        about = {"updates": str(self.updates), "stds": json.dumps(self.stds), **metadata}
        tensors = {
            f"{std}/{name}": value
            for std, average in zip(self.stds, self._averages, strict=True)
            for name, value in zip(self._names, average, strict=True)
        }
        save_tensors(path, tensors, about)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file belongs to a network with other weights, or holds other averages.
        """
        path = folder / WEIGHTS_FILE
        about, tensors = read_metadata(path), read_tensors(path)
        expected = {f"{std}/{name}" for std in self.stds for name in self._names}
        if set(tensors) != expected:
            odd = sorted(expected.symmetric_difference(tensors))[:3]
            raise ValueError(f"{path} belongs to another network or other averages: {odd} differ")
        for std, average in zip(self.stds, self._averages, strict=True):
            for name, value in zip(self._names, average, strict=True):
                value.copy_(tensors[f"{std}/{name}"])
        self.updates = int(about["updates"])


class SnapshotWriter:
    """Writes the averages of a run every few steps.

    Parameters
    ----------
    folder : Path
        Result folder of the run.
    network : nn.Module
        Of diffusers; its configuration is kept beside the snapshots.
    card : mapping
        Content of pathline.json.
    every : int
        Steps between snapshots; the last step has one too.
    """

    def __init__(self, folder: Path, network: Any, card: Mapping[str, Any], every: int) -> None:
        self.folder, self.every, self._card = folder / SNAPSHOTS, every, dict(card)
        plain = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}
        self._config = {"_class_name": type(network).__name__, **json.loads(json.dumps(plain, default=list))}
        self.run = _identity(self._card, self._config)

    def start(self, step: int) -> None:
        """Begin, or go on after `step`: snapshots of later steps are removed."""
        for later, path in _snapshots(self.folder).items():
            if later > step:
                path.unlink()
        about = {"run": self.run, "every": self.every, "network": self._config, "card": self._card}
        write_json(self.folder / RUN_FILE, about)

    def due(self, step: int, last: bool) -> bool:
        """Whether a snapshot is to be written after a step."""
        return last or step % self.every == 0

    def write(self, step: int, averages: PowerAverages) -> None:
        """Write the snapshot of a step."""
        averages.write(self.folder / f"step-{step:07d}.safetensors", {"run": self.run})


class Reconstruction(NamedTuple):
    """A network made of snapshots: its weights, the card, and how far its profile is from the one wanted."""

    network: nn.Module
    card: dict[str, Any]
    misfit: float


def reconstruct(run: Path, std: float, step: int | None = None) -> Reconstruction:
    """The average of relative standard deviation `std` that ends at a step, from the snapshots of a run.

    Parameters
    ----------
    run : Path
        Result folder of a run with power-function averages, finished or not.
    std : float
    step : int, optional
        Where the average ends; by default at the last snapshot.

    Raises
    ------
    ValueError
        No snapshots, ones that are damaged or of another run, a length that cannot be made of them, or too few of them
        for the profile.
    """
    folder = run / SNAPSHOTS
    found = _snapshots(folder)
    if not found:
        raise ValueError(f"{run} holds no snapshots of power-function averages; train with --ema power")
    about = read_json(folder / RUN_FILE)
    stored = [(profile, path) for path in found.values() for profile in _profiles(path, about["run"])]
    profiles = [profile for profile, _ in stored]
    wanted = Profile(float(step or max(found)), std)
    weights = combination(profiles, wanted)
    error = misfit(profiles, weights, wanted)
    if error > _WORST:
        due = range(about["every"], max(found), about["every"])
        gaps = [number for number in due if number not in found]
        missing = f"; missing are those of steps {', '.join(map(str, gaps[:5]))}" if gaps else ""
        raise ValueError(
            f"std={std:g} at step {wanted.end:g} cannot be made of the {len(found)} snapshots in {folder}: the profile "
            f"would be off by {error:.0%}{missing}"
        )
    network = build_network(about["network"])
    if skip_scaling_of(about["card"]) == "learned":  # weights of the network that its configuration does not name
        install_skip_scaling(network, "learned")
    _load(network, [(path, profile.std, weight) for (profile, path), weight in zip(stored, weights, strict=True)])
    card = about["card"]
    card["training"] |= {"steps": int(wanted.end), "weights": f"power-function average, std {std:g}"}
    return Reconstruction(network, card, error)


def export_average(run: Path, std: float, out: Path, step: int | None = None) -> float:
    """Write such a network as a pipeline folder; returns the misfit of its profile. Errors as of `reconstruct`.

    Raises
    ------
    ValueError
        Also if `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out must be a new or an empty folder, got {out}")
    made = reconstruct(run, std, step)
    export_pipeline(made.network, out, made.card)
    return made.misfit


def _identity(card: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Digest of all that decides the weights of a step: the same for a run that goes on from a checkpoint."""
    training = card["training"]
    free = RUN_ONLY | {"train_batch_size", "gradient_accumulation_steps", "max_train_steps"}
    options = {name: value for name, value in training["options"].items() if name not in free}
    told = [config, card["data"], card["path"], training["images_per_step"], options]  # these decide the objective
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def _snapshots(folder: Path) -> dict[int, Path]:
    found = ((_NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _profiles(path: Path, run: str) -> list[Profile]:
    about = read_metadata(path)
    if about.get("run") != run:
        raise ValueError(f"{path} belongs to another run than the {RUN_FILE} beside it; remove it")
    return [Profile(float(about["updates"]), std) for std in json.loads(about["stds"])]


def _load(network: nn.Module, parts: Sequence[tuple[Path, float, float]]) -> None:
    sums: dict[str, Tensor] = {
        name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in network.named_parameters()
    }
    for path in dict.fromkeys(path for path, _, _ in parts):
        tensors = read_tensors(path)
        for _, std, weight in (part for part in parts if part[0] == path):
            for name, total in sums.items():
                total += weight * tensors[f"{std}/{name}"].double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(sums[name])
