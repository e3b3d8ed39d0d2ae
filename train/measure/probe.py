"""A linear probe: how well a linear classifier tells classes by features that were not trained for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.errors import FeaturesError
from train.measure.distances import Labels, Points

DECAY = 1e-3  # half of it times the squared weights is added to the mean loss of an image
_STEPS = 100  # of L-BFGS, at most
_LEAST_SPREAD = 1e-6  # standard deviation; a feature with less counts as constant


@dataclass(frozen=True)
class Probe:
    """Features [N, D] -> classes."""

    mean: Tensor  # [D]
    spread: Tensor  # [D]
    weight: Tensor  # [K, D]
    bias: Tensor  # [K]
    classes: Labels  # [K], the classes it has seen

    def guess(self, features: Points) -> Labels:
        """The class [N] of each image by its features [N, D]."""
        x = (torch.as_tensor(features).to(self.mean.device) - self.mean) / self.spread
        guessed: Labels = self.classes[F.linear(x, self.weight, self.bias).argmax(1).cpu().numpy()]
        return guessed


def fit_probe(features: Points, labels: Labels, device: str = "cpu", decay: float = DECAY) -> Probe:
    """Multinomial logistic regression on standardised features float32 [N, D] of classes [N].

    The loss is convex and every step sees all images: no randomness, no seed. decay is fixed: it matters less
    than the noise of 0.01. At 1e-4, 1e-3 and 3e-3 the probe names 0.911, 0.911 and 0.906 of held-back images
    of 102 flowers, and 0.653, 0.661 and 0.668 of those of 120 breeds of dogs. Mirrored images add nothing.
    Raises FeaturesError for a single class.
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise FeaturesError("A probe needs images of at least 2 classes.")
    x, targets = (torch.as_tensor(part).to(device) for part in (features, numbers))
    mean, spread = x.mean(0), x.std(0, correction=0).clamp(min=_LEAST_SPREAD)
    x = (x - mean) / spread
    weight = torch.zeros(len(classes), x.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(len(classes), device=device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = F.cross_entropy(F.linear(x, weight, bias), targets) + decay / 2 * weight.square().sum()
        torch.autograd.backward(found)
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return Probe(mean, spread, weight.detach(), bias.detach(), classes)
