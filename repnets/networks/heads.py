"""The classifier head and the initial weights of all networks."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """Mean over the image, then a linear layer: (N, in_channels, H, W) to logits (N, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


def init_weights(model: nn.Module) -> None:
    """Kaiming-normal convolutions by fan-out (arXiv 1502.01852) and a small normal linear layer, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
