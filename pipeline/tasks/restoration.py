"""A better picture: super-resolution, denoising."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tasks.base import alone

if TYPE_CHECKING:
    from torch import Tensor

_SAME = 40.0  # dB: two pictures that no one tells apart


@dataclass(frozen=True)
class Restoration:
    """Pictures (N, C, s H, s W) in [0, 1]; the mean absolute difference and PSNR."""

    name = "restoration"
    metric = "PSNR [dB]"
    targets = "picture"

    def require(self, outputs: "Sequence[Tensor]", size: tuple[int, int], scale: int) -> None:
        """A picture so many times as large as the input."""
        height, width = (scale * side for side in size)
        picture = alone(outputs, 4, f"one picture, (2, channels, {height}, {width})")
        if tuple(picture.shape[-2:]) != (height, width):
            given = " x ".join(map(str, picture.shape[-2:]))
            raise ValueError(f"its picture is {given} pixels, and by data.scale {scale} it must be {height} x {width}")

    def loss(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> "Tensor":
        """Mean absolute difference."""
        from torch.nn.functional import l1_loss

        return l1_loss(outputs[0], targets)

    def score(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> float:
        """Peak signal-to-noise ratio of the R, G, B values, dB, cut to [0, 1]; the mean of the images."""
        from torchmetrics.functional.image import peak_signal_noise_ratio

        given = outputs[0].float().clamp(0, 1)
        ratio = peak_signal_noise_ratio(given, targets.float(), data_range=1.0, dim=(1, 2, 3), reduction="none")
        return float(ratio.clamp(max=100).mean())

    def agreement(self, outputs: "Sequence[Tensor]", others: "Sequence[Tensor]") -> float:
        """PSNR between the two, as a share of 40 dB, at which no one tells them apart; at most 1."""
        return min(1.0, max(0.0, self.score(outputs, others[0].float().clamp(0, 1)) / _SAME))

    def decode(self, outputs: "Sequence[Tensor]") -> "list[Tensor]":
        """The picture: uint8 (C, s H, s W)."""
        import torch

        return list((outputs[0].float().clamp(0, 1) * 255).round().to(torch.uint8))

    def draw(self, picture: "Tensor", decoded: "Tensor") -> "Tensor":
        """The restored picture itself, at the size of the picture."""
        from torch.nn.functional import interpolate

        return interpolate(decoded[None], picture.shape[-2:], mode="nearest")[0].expand(3, -1, -1)
