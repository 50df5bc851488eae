"""The networks as data, each with its source; `repnets.networks` builds them. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class NetworkSpec:
    """A network as data.

    Attributes:
        name: What `create_model` takes.
        task: What it is for, and so what it gives of (N, C, H, W) images: "classification", logits (N, classes);
            "segmentation", logits (N, classes, H, W); "detection", raw boxes and classes by level, a dict;
            "restoration", images (N, C, s x H, s x W); "embedding", vectors (N, width) of length one.
        family: The module of `repnets.networks` whose `build` makes it.
        min_image_size: Smallest height and width in pixels that reach every stage with at least a pixel for
            each of its strides: the network's total stride.
        size_step: Height and width in pixels are multiples of this; 1 where any will do.
        settings: Keyword arguments of the family's `build`.
    """

    name: str
    task: str
    family: str
    min_image_size: int
    size_step: int
    settings: Mapping[str, object]

    @property
    def has_classes(self) -> bool:
        """Whether its last layer has a width for each class."""
        return self.task not in ("restoration", "embedding")


def _spec(
    name: str,
    family: str,
    min_image_size: int = 32,
    task: str = "classification",
    size_step: int = 1,
    **settings: object,
) -> NetworkSpec:
    return NetworkSpec(name, task, family, min_image_size, size_step, MappingProxyType(settings))


def _repvgg(name: str, depths: tuple[int, ...], multipliers: tuple[float, ...], **extra: object) -> NetworkSpec:
    return _spec(f"repvgg_{name}", "repvgg", depths=depths, multipliers=multipliers, **extra)


def _mobileone(name: str, multipliers: tuple[float, ...], **extra: object) -> NetworkSpec:
    return _spec(f"mobileone_{name}", "mobileone", multipliers=multipliers, **extra)


def _segmenter(name: str, stride: int, **settings: object) -> NetworkSpec:
    return _spec(f"{name}_segmenter", "segmenter", stride, "segmentation", stride, **settings)


def _detector(name: str, stride: int, **settings: object) -> NetworkSpec:
    return _spec(name, "detector", stride, "detection", stride, **settings)


def _repdet(name: str, width: float, depth: float) -> NetworkSpec:
    """A size of YOLOv6, arXiv 2209.02976: what its widest and deepest network is multiplied by."""
    widths, neck_widths = (64, 128, 256, 512, 1024), (256, 128, 128, 256, 256, 512)
    return _detector(
        f"repdet_{name}",
        32,
        widths=tuple(int(one * width) for one in widths),
        depths=tuple(round(one * depth) for one in (6, 12, 18, 6)),
        neck_widths=tuple(int(one * width) for one in neck_widths),
        neck_depth=round(12 * depth),
    )


def _superresolution(name: str, factor: int, depth: int = 4, width: int = 16, block: str = "edge") -> NetworkSpec:
    settings = {"depth": depth, "width": width, "factor": factor, "block": block}
    return _spec(f"{name}_x{factor}", "superresolution", 4, "restoration", **settings)


# RepVGG, arXiv 2101.03697, tables 2 and 3: blocks and width multipliers of each stage
_A, _B = (2, 4, 14, 1), (4, 6, 16, 1)
_A0 = (0.75, 0.75, 0.75, 2.5)
_B1, _B2, _B3 = (2, 2, 2, 4), (2.5, 2.5, 2.5, 5), (3, 3, 3, 5)
_S0 = (0.75, 1, 1, 2)  # MobileOne's smallest, arXiv 2206.04040, table 3

_SPECS = (
    _spec("toy", "toy", min_image_size=4),
    _repvgg("a0", _A, _A0),
    _repvgg("a1", _A, (1, 1, 1, 2.5)),
    _repvgg("a2", _A, (1.5, 1.5, 1.5, 2.75)),
    _repvgg("b0", _B, (1, 1, 1, 2.5)),
    _repvgg("b1", _B, _B1),
    _repvgg("b1g2", _B, _B1, groups=2),
    _repvgg("b1g4", _B, _B1, groups=4),
    _repvgg("b2", _B, _B2),
    _repvgg("b2g2", _B, _B2, groups=2),
    _repvgg("b2g4", _B, _B2, groups=4),
    _repvgg("b3", _B, _B3),
    _repvgg("b3g2", _B, _B3, groups=2),
    _repvgg("b3g4", _B, _B3, groups=4),
    _repvgg("d2se", (8, 14, 24, 1), _B2, block="gated"),
    # QARepVGG, arXiv 2212.01593, has RepVGG's tables
    _spec("qarepvgg_a0", "repvgg", depths=_A, multipliers=_A0, block="quantizable"),
    _spec("qarepvgg_b0", "repvgg", depths=_B, multipliers=(1, 1, 1, 2.5), block="quantizable"),
    # MobileOne, arXiv 2206.04040, table 3: width multipliers, and the convolution branches of a block
    _mobileone("s0", _S0, branches=4),
    _mobileone("s1", (1.5, 1.5, 2, 2.5)),
    _mobileone("s2", (1.5, 2, 2.5, 4)),
    _mobileone("s3", (2, 2.5, 3, 4)),
    _mobileone("s4", (3, 3.5, 3.5, 4), gated_pairs=(0, 0, 5, 1)),
    # ShuffleNetV2, arXiv 1807.11164, table 5: channels of the stem, the stages and the last convolution
    _spec("repshufflenet_x0_5", "repshufflenet", widths=(24, 48, 96, 192, 1024)),
    _spec("repshufflenet_x1_0", "repshufflenet", widths=(24, 116, 232, 464, 1024)),
    _spec("resnet18", "resnet"),
    _spec("resnet18_acb", "resnet", convolution="asymmetric"),
    _spec("resnet18_dbb", "resnet", convolution="diverse"),
    _segmenter("toy", 16, backbone="repvgg", levels=4, width=32, depths=(1, 2, 2), multipliers=(0.5, 0.5, 0.5)),
    _segmenter("repvgg_a0", 32, backbone="repvgg", levels=3, width=128, depths=_A, multipliers=_A0),
    _segmenter("mobileone_s0", 32, backbone="mobileone", levels=3, width=128, multipliers=_S0, branches=4),
    _detector(
        "toy_detector",
        16,
        widths=(16, 32, 64, 96),
        depths=(1, 1, 1),
        neck_widths=(48, 32, 32, 48, 48, 64),
        neck_depth=1,
    ),
    _repdet("n", width=0.25, depth=1 / 3),
    _repdet("s", width=0.5, depth=1 / 3),
    # ECBSR, ACM MM 2021: blocks between the first and the last, and channels
    _superresolution("toy", 2, depth=2, width=16),
    _superresolution("ecbsr_m4c16", 2),
    _superresolution("ecbsr_m4c16", 4),
    _superresolution("plainsr_m4c16", 2, block="plain"),
    _spec("toy_embedding", "embedder", min_image_size=4, task="embedding", backbone="toy", width=64),
    _spec(
        "repvgg_a0_embedding", "embedder", task="embedding", backbone="repvgg", width=128, depths=_A, multipliers=_A0
    ),
)

MODELS: Mapping[str, NetworkSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
