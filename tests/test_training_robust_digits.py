"""What wrong labels and biased data do to a generator of digits, and what the robust losses make of it.

The numbers of docs/losses.md are those of more steps; here fewer do.
"""

import pytest
import torch
from torch import Tensor

from pathline.training import (
    BiasedDataObjective,
    NoisyLabelObjective,
    corrupt_labels,
    discrimination_loss,
    symmetric_noise,
    transition_loss,
)
from support.digit_networks import OBJECTIVE, PATH, Denoiser, Features, digits, draw, fit, judge

pytestmark = pytest.mark.slow
STEPS = 500


def noised(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return x + PATH.noise(t).float()[:, None] * noise


def test_labels_of_which_a_third_is_wrong() -> None:
    torch.manual_seed(0)
    images, labels = digits()
    transition = symmetric_noise(10, 0.4)
    uniforms = torch.rand(len(labels), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    seen = corrupt_labels(labels, transition, uniforms)
    assert 0.35 < float((seen != labels).float().mean()) < 0.45

    plain, robust, classifier = Denoiser(10), Denoiser(10), Features(10)
    fit(plain, lambda i, z, t: OBJECTIVE(plain, images[i], z, t, {"class_labels": seen[i]}), len(images), STEPS)
    fit(
        classifier,
        lambda i, z, t: transition_loss(classifier(noised(images[i], z, t), t.float()), seen[i], transition),
        len(images),
        STEPS // 2,
    )
    objective = NoisyLabelObjective(OBJECTIVE, transition)
    fit(robust, lambda i, z, t: objective(robust, classifier, images[i], z, t, seen[i]), len(images), STEPS)
    asked, predict = torch.arange(500) % 10, judge()
    right = [float((torch.tensor(predict(draw(net, 500, asked))) == asked).float().mean()) for net in (plain, robust)]
    assert right[0] < 0.65
    assert right[1] > 0.88


def test_data_that_lack_half_of_the_classes() -> None:
    torch.manual_seed(0)
    images, labels = digits()
    generator = torch.Generator().manual_seed(11)
    order = torch.randperm(len(images), generator=generator)
    reference, rest = order[:200], order[200:]
    biased = rest[(labels[rest] < 5) | (torch.rand(len(rest), generator=generator) < 0.1)]
    observed = torch.cat([images[reference], images[biased]])
    repeats = images[reference].repeat(len(biased) // 200 + 1, 1)[: len(biased)]
    both, is_reference = torch.cat([repeats, images[biased]]), torch.arange(2 * len(biased)) < len(biased)

    plain, robust, network = Denoiser(), Denoiser(), Features(1)

    def discriminator(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t)[:, 0]

    fit(
        network,
        lambda i, z, t: discrimination_loss(discriminator(noised(both[i], z, t), t.float()), is_reference[i]),
        len(both),
        100,  # more, and it knows the reference set by heart
    )
    fit(plain, lambda i, z, t: OBJECTIVE(plain, observed[i], z, t), len(observed), STEPS)
    objective = BiasedDataObjective(OBJECTIVE, 200 / len(observed))
    fit(robust, lambda i, z, t: objective(robust, discriminator, observed[i], z, t), len(observed), STEPS)
    predict = judge()
    share = [float((torch.tensor(predict(draw(net, 1000))) >= 5).float().mean()) for net in (plain, robust)]
    assert share[0] < 0.3  # about half of all digits are 5 to 9
    assert 0.35 < share[1] < 0.65
