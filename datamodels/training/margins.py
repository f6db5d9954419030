"""What is measured of logits: the margin, and its soft form, which has a gradient everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Correct-class logit less the largest other logit: (…, T, classes) and (T,) to (…, T), in logits."""
    right = F.one_hot(labels, logits.shape[-1]).bool().expand_as(logits)
    correct = logits.masked_fill(~right, 0).sum(-1)
    return correct - logits.masked_fill(right, -torch.inf).amax(-1)


def soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Correct-class logit less the logarithm of the sum of the others' exponentials: (B, classes) and (B,) to (B,)."""
    right = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    return logits.masked_fill(~right, 0).sum(1) - torch.logsumexp(logits.masked_fill(right, -torch.inf), 1)
