"""Training on wrong labels and on biased data: exact identities, minimisers, and what both do to digits."""

import math

import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, GaussianMixture, LinearPath, VEPath, VPPath
from pathline.training import (
    BiasedDataObjective,
    EDMWeight,
    GaussianObjective,
    NoisyLabelObjective,
    class_posterior,
    corrupt_labels,
    discrimination_loss,
    flip_noise,
    log_ratio,
    symmetric_noise,
    tilt,
    transition_loss,
)

F64 = torch.float64
CENTRES = torch.tensor([-2.0, 0.0, 3.0], dtype=F64)
SKEWED = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.7, 0.2], [0.15, 0.05, 0.8]], dtype=F64)


def class_logits(x: Tensor, variance: Tensor) -> Tensor:
    """Exact classifier of three equally likely classes N(centre, variance), x (B, 1)."""
    return -0.5 * (x - CENTRES).square() / variance


def test_the_score_of_a_seen_label_is_the_weighted_sum_of_those_of_the_classes() -> None:
    variance = torch.tensor(1.0 + 0.8**2, dtype=F64)  # data of variance 1, noise 0.8
    x = torch.linspace(-4, 5, 19, dtype=F64)[:, None]
    for seen in range(3):
        labels = torch.full((19,), seen)
        weights = class_posterior(class_logits(x, variance), labels, SKEWED)
        combined = (weights * (CENTRES - x) / variance).sum(1)
        place = x.clone().requires_grad_()
        density = (SKEWED[:, seen] * class_logits(place, variance).exp()).sum(1)
        (score,) = torch.autograd.grad(density.log().sum(), place)
        torch.testing.assert_close(combined, score[:, 0])
        torch.testing.assert_close(weights.sum(1), torch.ones(19, dtype=F64))


def test_weights_are_those_of_the_paper() -> None:
    # There: alpha = T'h / prior of seen labels, beta = R^-1 alpha, w_ji = R_ji beta_i / alpha_j for uniform classes.
    logits = torch.randn(5, 3, dtype=F64)
    clean = logits.softmax(1)
    reverse = (SKEWED / SKEWED.sum(0)).T
    alpha = clean @ SKEWED / (SKEWED.sum(0) / 3)
    beta = torch.linalg.solve(reverse, alpha.T).T
    for seen in range(3):
        paper = reverse[seen] * beta / alpha[:, seen : seen + 1]
        torch.testing.assert_close(class_posterior(logits, torch.full((5,), seen), SKEWED), paper)


def test_transition_loss_is_least_for_the_true_classes() -> None:
    x = torch.linspace(-6, 7, 2001, dtype=F64)[:, None]
    true = class_logits(x, torch.tensor(1.5, dtype=F64))
    joint = true.exp() @ SKEWED
    logits = true.clone().requires_grad_()
    total = sum((joint[:, j] * transition_loss(logits, torch.full((2001,), j), SKEWED)).sum() for j in range(3))
    (gradient,) = torch.autograd.grad(total, logits)
    assert float(gradient.abs().max()) < 1e-9
    plain = transition_loss(logits, torch.zeros(2001, dtype=torch.long), torch.eye(3, dtype=F64))
    torch.testing.assert_close(plain, -logits.log_softmax(1)[:, 0])


@pytest.mark.parametrize("full_gradient", [False, True])
def test_denoisers_of_the_classes_are_recovered_from_wrong_labels(full_gradient: bool) -> None:
    # A grid of states and seen labels, each with its mean datum and its probability, in place of samples.
    path, power = VEPath(), torch.tensor(1.0 + 0.8**2, dtype=F64)
    x, seen = torch.linspace(-6, 7, 66, dtype=F64).repeat(3)[:, None], torch.arange(3).repeat_interleave(66)
    exact = (x + 0.64 * CENTRES) / power  # E[data | x, class], one column per class
    classes = class_logits(x, power).exp()
    mass = classes * SKEWED[:, seen].T
    data = (mass * exact).sum(1, keepdim=True) / mass.sum(1, keepdim=True)
    t = path.time_at(-math.log(0.8)).expand(len(x))
    objective = NoisyLabelObjective(GaussianObjective(path, "data"), SKEWED, threshold=0.0, full_gradient=full_gradient)
    slope = torch.zeros(3, dtype=F64, requires_grad=True)
    shift = torch.zeros(3, dtype=F64, requires_grad=True)

    def model(x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        return slope[class_labels][:, None] * (x - CENTRES[class_labels][:, None]) + shift[class_labels][:, None]

    optimizer = torch.optim.Adam([slope, shift], lr=0.3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(200):
        losses = objective(model, lambda x, t: class_logits(x, power), data, (x - data) / 0.8, t, seen)
        optimizer.zero_grad()
        (mass.sum(1) * losses).sum().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(slope.detach(), torch.ones(3, dtype=F64) / power, atol=3e-3, rtol=0)
    torch.testing.assert_close(shift.detach(), CENTRES, atol=3e-3, rtol=0)


def test_right_labels_give_the_plain_loss_and_thresholds_leave_classes_out() -> None:
    objective = GaussianObjective(LinearPath(), "velocity")
    data, noise = torch.randn(2, 6, 1, 2, 2)
    t, seen = torch.rand(6, dtype=F64), torch.tensor([0, 1, 2, 0, 1, 2])
    calls = []

    def model(x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        calls.append(class_labels.tolist())
        return x.sin() * (1 + class_labels)[:, None, None, None]

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return torch.tensor([0.0, 2.0, -6.0]).expand(len(x), 3)

    robust = NoisyLabelObjective(objective, torch.eye(3, dtype=F64))
    plain = objective(model, data, noise, t, {"class_labels": seen})
    torch.testing.assert_close(robust(model, classifier, data, noise, t, seen), plain)
    assert calls == [seen.tolist()] * 2  # and no call for other classes
    calls.clear()
    NoisyLabelObjective(objective, symmetric_noise(3, 0.3))(model, classifier, data, noise, t, seen)
    assert calls[0] == seen.tolist()
    assert sorted(set(calls[1])) == [0, 1]  # class 2 has a weight below 0.01 unless it is the seen one
    weights = robust.weights(classifier(data, t), seen)
    torch.testing.assert_close(weights.sum(1), torch.ones(6))


def test_transition_matrices() -> None:
    matrix = symmetric_noise(4, 0.3)
    torch.testing.assert_close(matrix.diagonal(), torch.full((4,), 0.7, dtype=F64))
    torch.testing.assert_close(matrix.sum(1), torch.ones(4, dtype=F64))
    flips = flip_noise(4, {3: 1, 0: 2}, 0.4)
    assert flips[3].tolist() == [0.0, 0.4, 0.0, 0.6]
    assert flips[1].tolist() == [0.0, 1.0, 0.0, 0.0]
    labels = torch.arange(3).repeat_interleave(40_000)
    uniforms = (torch.arange(40_000, dtype=F64) + 0.5).repeat(3) / 40_000
    seen = corrupt_labels(labels, SKEWED, uniforms)
    counts = torch.stack([torch.bincount(seen[labels == i], minlength=3) for i in range(3)]) / 40_000
    torch.testing.assert_close(counts.to(F64), SKEWED, atol=1e-4, rtol=0)


BIAS, REFERENCE = (GaussianMixture([1.0], [[centre]], std=[0.3]) for centre in (-1.0, 1.0))


def exact_logit(path):
    """Balanced discriminator of the reference law N(1, 0.09) from the biased one N(-1, 0.09)."""

    def logit(x: Tensor, t: Tensor) -> Tensor:
        signal, noise = path.signal(t), path.noise(t)
        return REFERENCE.log_density(x, signal, noise) - BIAS.log_density(x, signal, noise)

    return logit


@pytest.mark.parametrize("prediction", ["data", "noise", "velocity", "v", "score"])
@pytest.mark.parametrize("path", [VEPath(), LinearPath(), VPPath()], ids=lambda path: path.name)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_the_reference_law_is_the_minimum_on_biased_data(path, prediction: str, share: float) -> None:
    # At one state, all data by quadrature: the weighted mean of the corrected targets is the reference's prediction.
    observed = GaussianMixture([1 - share, share], [[-1.0], [1.0]], std=[0.3, 0.3])
    t = path.time_at(-math.log(0.8))
    point = path.at(t)
    data = torch.linspace(-4, 4, 4001, dtype=F64)[:, None]
    objective = BiasedDataObjective(GaussianObjective(path, prediction), share)
    for place in (-1.0, 0.0, 1.0):
        x = float(point.signal) * place
        noise = (x - point.signal * data) / point.noise
        mass = (observed.log_density(data) - 0.5 * noise[:, 0].square()).exp()
        output = torch.full((1,), 0.0, dtype=F64, requires_grad=True)
        exact = REFERENCE.as_model(path, prediction)(torch.full((1, 1), x, dtype=F64), t.reshape(1))
        losses = objective(
            lambda x, label, output=output, exact=exact: (exact[0] + output).expand_as(x),
            exact_logit(path), data, noise, t.expand(4001),
        )  # fmt: skip
        (gradient,) = torch.autograd.grad((mass / mass.sum() * losses).sum(), output)
        assert abs(float(gradient)) < 1e-6 * max(1.0, abs(float(exact)))


def test_published_example_of_the_corrected_denoiser() -> None:
    # Reference N(1, 0.3²), noise 0.8: x − σ²(x − 1)/(0.09 + σ²); the opposite sign would give −2.54, −0.89, 0.79.
    path = VEPath()
    t = path.time_at(-math.log(0.8))
    observed = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], std=[0.3, 0.3])
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64)
    mean = observed.data_prediction(x, 1.0, 0.8)
    pair = tilt(path, exact_logit(path), mean, (x - mean) / 0.8, t.expand(3), share=0.5)
    torch.testing.assert_close(pair.data[:, 0], torch.tensor([0.75342, 0.87671, 1.0], dtype=F64), atol=1e-5, rtol=0)
    torch.testing.assert_close(pair.data + 0.8 * pair.noise, x)
    assert not pair.data.requires_grad


def test_density_ratios() -> None:
    logits = torch.linspace(-6, 6, 13, dtype=F64, requires_grad=True)
    torch.testing.assert_close(log_ratio(logits, 0.0).exp(), logits.exp())
    torch.testing.assert_close(log_ratio(logits, 0.5).exp(), 2 * logits.sigmoid())
    ratio = logits.exp()
    torch.testing.assert_close(log_ratio(logits, 0.05).exp(), ratio / (0.05 * ratio + 0.95))
    extreme = torch.tensor([-1e4, 1e4], dtype=F64, requires_grad=True)
    for share in (0.0, 0.3):
        (gradient,) = torch.autograd.grad(log_ratio(extreme, share).sum(), extreme)
        assert bool(gradient.isfinite().all())
    # the balanced loss: logit 0 is the optimum where both sets look alike, whatever their sizes
    is_reference = torch.tensor([True] + [False] * 9)
    logit = torch.zeros(10, requires_grad=True)
    (gradient,) = torch.autograd.grad(discrimination_loss(logit, is_reference, 0.1).sum(), logit)
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-6)


def test_without_bias_the_loss_is_the_plain_one() -> None:
    objective = GaussianObjective(EDMPath(), "data", weight=EDMWeight())
    data, noise = torch.randn(2, 4, 3, dtype=F64)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=F64)
    robust = BiasedDataObjective(objective, 0.3)
    indifferent = robust(lambda x, t: x.sin(), lambda x, t: 0 * x.sum(1), data, noise, t)
    torch.testing.assert_close(indifferent, objective(lambda x, t: x.sin(), data, noise, t))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: symmetric_noise(1, 0.1), "classes=1 is not possible"),
        (lambda: symmetric_noise(3, 1.0), "rate=1.0 of wrong labels"),
        (lambda: flip_noise(3, {0: 3}, 0.1), "flip 0 -> 3 must join"),
        (lambda: corrupt_labels(torch.zeros(1, dtype=torch.long), torch.ones(2, 2), torch.rand(1)), "add up to 1"),
        (lambda: NoisyLabelObjective(GaussianObjective(LinearPath(), "v"), torch.eye(2), 1.0), "threshold must lie"),
        (
            lambda: NoisyLabelObjective(GaussianObjective(LinearPath(), "v"), torch.eye(2))(
                lambda x, t: x, lambda x, t: x, *torch.zeros(2, 1, 2), torch.ones(1), torch.tensor([2])
            ),
            r"one class of 0 ... 1 per sample, got \[2\]",
        ),
        (lambda: BiasedDataObjective(GaussianObjective(LinearPath(), "v"), 1.0), r"must lie in \[0, 1\), got 1.0"),
        (lambda: discrimination_loss(torch.zeros(1), torch.tensor([True]), 0.0), r"must lie in \(0, 1\), got 0.0"),
    ],
)
def test_bad_input_is_refused_with_words(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
