"""A small convolutional network of one's own, as `training.network: datamodels.examples.convnet:ConvNet` names it.

Any torch.nn.Module will do: a class, or a function that gives one, which takes images (B, C, H, W), or features (B, d), and
gives logits (B, classes). What its constructor asks for by name it is given: see datamodels/training/made.py. Nothing is to be
done for K of them to be trained at once; running statistics and dropout are each model's own.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three convolutions, two of which halve the image, a mean over what is left, dropout, and a linear layer."""

    def __init__(self, channels: int, classes: int, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(channels, width, stride=1),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        logits: Tensor = self.body(x)
        return logits


def _block(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )
