"""Small networks that no package has as such, and what makes the others' outputs plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FirstOutput(nn.Module):
    """The first tensor of a model's output: of a transformer, its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """The same inputs as the model's."""
        output: Any = self.model(*inputs)
        while not isinstance(output, Tensor):
            output = next(iter(output.values())) if isinstance(output, dict) else output[0]
        return output


class DetectionHeads(nn.Module):
    """Backbone and heads of a torchvision detector, without the selection of boxes that follows.

    Selection has shapes that depend on the image: no compiler of static kernels takes it. A detector of two stages ends
    with its proposals' scores.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.head if hasattr(detector, "head") else detector.rpn.head

    def forward(self, image: Tensor) -> list[Tensor]:
        """Of an image (batch, 3, height, width), what the heads say of each place."""
        features = self.backbone(image)
        found = self.head([features] if isinstance(features, Tensor) else list(features.values()))
        values = found.values() if isinstance(found, dict) else found
        return [tensor for value in values for tensor in ([value] if isinstance(value, Tensor) else value)]


def convolutions(inside: int, outside: int) -> nn.Sequential:
    """Two convolutions, each with normalisation and activation."""
    return nn.Sequential(
        *(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()),
        *(nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()),
    )


class UNet(nn.Module):
    """Encoder and decoder of four levels with connections between them, for segmentation."""

    def __init__(self, channels: int, width: int, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(map(convolutions, [channels, *widths[:-1]], widths))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * at, at, 2, stride=2) for at in reversed(widths[:-1]))
        self.merge = nn.ModuleList(convolutions(2 * at, at) for at in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Of an image (batch, channels, height, width), scores (batch, classes, height, width)."""
        levels: list[Tensor] = []
        for down in self.down:
            image = down(image if not levels else self.pool(image))
            levels.append(image)
        image = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            image = merge(torch.cat([levels.pop(), up(image)], dim=1))
        return self.head(image)


class SubPixel(nn.Module):
    """Residual blocks and a shuffle of channels into pixels, for images of twice the side."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 5, padding=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, channels * 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, image: Tensor) -> Tensor:
        """Of an image (batch, channels, height, width), one of twice the height and width."""
        found = torch.tanh(self.first(image))
        for block in self.blocks:
            found = found + block(found)
        return self.shuffle(self.last(found))


class TemporalConvolutions(nn.Module):
    """Dilated and depthwise convolutions over time, as separators and recognisers of speech have them."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv1d(width, 2 * width, 1), nn.PReLU(), nn.BatchNorm1d(2 * width)),
                nn.Conv1d(2 * width, 2 * width, 3, padding=2**at, dilation=2**at, groups=2 * width),
                *(nn.PReLU(), nn.BatchNorm1d(2 * width), nn.Conv1d(2 * width, width, 1)),
            )
            for at in range(blocks)
        )
        self.head = nn.Conv1d(width, 40, 1)

    def forward(self, signal: Tensor) -> Tensor:
        """Of features (batch, channels, frames), scores (batch, 40, frames)."""
        signal = self.first(signal)
        for block in self.blocks:
            signal = signal + block(signal)
        return torch.sigmoid(self.head(signal))


class Perceptron(nn.Module):
    """Dense layers of the widths given, as recommenders and detectors of anomalies have them."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip([channels, *widths], widths, strict=False)
        layers = [nn.Sequential(nn.Linear(inside, outside), nn.ReLU()) for inside, outside in pairs]
        self.layers = nn.Sequential(*layers[:-1], layers[-1][0])

    def forward(self, rows: Tensor) -> Tensor:
        """Of rows (batch, channels), outputs (batch, last width)."""
        return self.layers(rows)
