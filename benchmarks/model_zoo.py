"""Whether `repnets.fuse` holds for networks of other packages: what it claims, what it folds, how exact, how long.

    python benchmarks/model_zoo.py                                    every network below; an hour on one core
    python benchmarks/model_zoo.py --networks torchvision:resnet50 timm:mobilevit_xxs smp:Linknet
    python benchmarks/model_zoo.py --output zoo.json > zoo.md
    python benchmarks/model_zoo.py --read first.json second.json      the table of earlier runs

Each network is built without pretrained weights, its batch norm statistics moved away from their defaults, and fused
in float64 (float32 where its own code needs that) in a process of its own. Then model and fused network run at three
sizes with batches of one and two: the example's, a smaller odd one, and one that is not square, each the nearest that
the report claims. A network with one size runs at that, and has to refuse the next. The difference is the largest over
all outputs and shapes, relative to the largest number of the output.

It needs timm and segmentation-models-pytorch: pip install 'repnets[timm]' segmentation-models-pytorch.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fuse import alone, shuffle_constants, table
from pipeline.benchmark import conditions

# fmt: off
NETWORKS = {
    "torchvision": (
        "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v3_small",
        "regnet_y_400mf", "resnet50", "shufflenet_v2_x0_5", "swin_t", "vgg11_bn", "convnext_tiny",
        "segmentation.lraspp_mobilenet_v3_large", "segmentation.deeplabv3_mobilenet_v3_large", "video.r3d_18",
    ),
    "timm": (
        "coatnet_nano_rw_224", "densenet121", "dla34", "edgenext_xx_small", "efficientformer_l1", "efficientvit_b0",
        "efficientvit_m0", "fastvit_t8", "ghostnetv3_050", "hrnet_w18_small", "levit_128s", "mobileone_s0",
        "mobilevit_xxs", "mobilevitv2_050", "poolformer_s12", "pvt_v2_b0", "repvit_m0_9", "res2net50_14w_8s",
        "skresnet18", "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0", "tiny_vit_5m_224", "ecaresnet26t",
    ),
    "smp": (
        "Unet", "UnetPlusPlus", "Linknet", "FPN", "PSPNet", "DeepLabV3Plus", "PAN", "MAnet",
    ),
    "paper": (
        "safmn",
    ),
}
# fmt: on
PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch")
SIZES = ((224, 224), (97, 97), (160, 193))  # height and width; where they are free
BATCHES = (1, 2)
FRAMES = 8
VIDEO_SIDE = 64


def main() -> int:
    """Fuse and compare each network, print the table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", metavar="PACKAGE:NAME", help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="that torch may use; default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="print the table of such files instead")
    options = parser.parse_args()
    if options.read:
        results = [json.loads(file.read_text()) for file in options.read]
        networks = {name: one for result in results for name, one in result["networks"].items()}
        print(text({**results[0], "networks": networks}))
        return 0
    names = options.networks or [f"{package}:{name}" for package, those in NETWORKS.items() for name in those]
    before = conditions.snapshot()
    networks = {}
    for number, name in enumerate(names, start=1):
        start = time.perf_counter()
        networks[name] = _tried(name, options.threads)
        print(f"[{number}/{len(names)}] {_progress(name, networks[name])}, "
              f"{time.perf_counter() - start:.0f} s in all", file=sys.stderr, flush=True)  # fmt: skip
        about = conditions.describe(options.threads, PACKAGES, before, conditions.snapshot())
        if options.output:  # also of a run that is stopped
            options.output.write_text(json.dumps({"conditions": about, "networks": networks}, indent=2) + "\n")
    print(text({"conditions": about, "networks": networks}))
    return 1 if any(one["failed"] for one in networks.values()) else 0


def _tried(name: str, threads: int) -> dict[str, Any]:
    try:
        return alone(measured, name, threads)
    except BrokenProcessPool:
        return {"failed": "the process ended early, perhaps for lack of memory"}
    except Exception as error:  # whatever a network's own code or the exporter raises
        return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


# In a process of its own


def build(name: str) -> tuple[Any, tuple[int, ...]]:
    """A network in eval mode, float64 where it runs in that, trained-looking; and the shape of its example.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``smp:NAME``, which gets an encoder of ResNet-18, or ``paper:safmn``.
    """
    import copy

    import torch

    torch.manual_seed(0)
    package, _, inside = name.partition(":")
    shape: tuple[int, ...] = (1, 3, *SIZES[0])
    if package == "torchvision":
        import torchvision

        options = (
            {"weights": None, "weights_backbone": None} if inside.startswith("segmentation.") else {"weights": None}
        )
        options |= {"init_weights": False, "aux_logits": False} if inside in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(inside.rpartition(".")[2], **options)
        if inside.startswith("video."):
            shape = (1, 3, FRAMES, VIDEO_SIDE, VIDEO_SIDE)
    elif package == "timm":
        import timm

        model = timm.create_model(inside)
        if model.default_cfg.get("fixed_input_size"):
            shape = (1, *model.default_cfg["input_size"])
    elif package == "smp":
        import segmentation_models_pytorch

        model = getattr(segmentation_models_pytorch, inside)("resnet18", encoder_weights=None)
    else:
        model = safmn()
    model.eval().requires_grad_(False)
    shuffle_constants(model)
    double = copy.deepcopy(model).double()
    try:
        with torch.no_grad():
            double(torch.zeros(shape, dtype=torch.float64))
    except RuntimeError:  # it makes float32 constants while it runs
        return model, shape
    return double, shape


def measured(name: str, threads: int) -> dict[str, Any]:
    """What `fuse` claims and folds of a network, how far its result is from the network, and the seconds."""
    import torch

    import repnets

    torch.set_num_threads(threads)
    model, shape = build(name)
    dtype = next(tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point())
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found: dict[str, Any] = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "failed": None}
    try:
        result = repnets.fuse(model, example)
    except repnets.RepnetsError as error:
        return found | {"refused": str(error)}
    report = result.report
    found |= {
        "input_shape": list(report.input_shape),
        "free": {axis: {"min": size.min, "step": size.step} for axis, size in report.free.items()},
        "convolutions": [report.before.convolutions, report.after.convolutions],
        "batch_norms": [report.before.batch_norms, report.after.batch_norms],
        "macs": [report.before.macs, report.after.macs],
        "seconds": report.seconds,
        "differences": {},
    }
    with torch.no_grad():
        for tried in shapes(shape, report):
            x = torch.randn(tried, generator=torch.Generator().manual_seed(1)).to(dtype)
            key = " x ".join(map(str, tried))
            found["differences"][key] = difference(result.module(x.clone()), model(x.clone()))
        found["takes_unclaimed"] = [list(one) for one in _unclaimed(shape, report) if _takes(result.module, one, dtype)]
    return found


def shapes(example: Sequence[int], report: Any) -> list[tuple[int, ...]]:
    """Three sizes and two batches, as far as they are claimed."""
    rank = len(example) - 2
    names = {2: ("height", "width"), 3: ("depth", "height", "width")}[rank]
    wanted = SIZES if rank == 2 else tuple((FRAMES + more, side, side) for more, side in ((0, 64), (1, 49), (3, 80)))
    found = {}
    for sizes in wanted:
        for batch in BATCHES:
            claimed = [
                _nearest(report.free[axis], size) if axis in report.free else own
                for axis, size, own in zip(("batch", *names), (batch, *sizes), (example[0], *example[2:]), strict=True)
            ]
            found[(claimed[0], example[1], *claimed[1:])] = None
    return list(found)


def _nearest(free: Any, size: int) -> int:
    """The largest claimed size up to `size`; one of the least where all are larger, of either parity."""
    return free.min + ((size - free.min) // free.step if size >= free.min else 1 + size % 2) * free.step


def _unclaimed(example: Sequence[int], report: Any) -> list[tuple[int, ...]]:
    """Shapes that the fused network has to refuse: the last axis at a size that is not claimed."""
    free = report.free.get("width")
    if free is None:
        other = example[-1] + 32
    elif free.step > 1:
        other = free.min + free.step + 1
    else:
        return []
    return [(*example[:-1], other)]


def _takes(module: Any, shape: Sequence[int], dtype: Any) -> bool:
    import torch

    try:
        module(torch.zeros(tuple(shape), dtype=dtype))
    except Exception:  # the check at its entry, or whatever layer is in the way
        return False
    return True


def difference(got: Any, want: Any) -> float:
    """The largest over all outputs, relative to the largest number of each; infinite where shapes differ."""
    from torch.utils._pytree import tree_leaves

    pairs = list(zip(tree_leaves(got), tree_leaves(want), strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def safmn() -> Any:
    """SAFMN, a network for super-resolution by two (arXiv 2302.13800), of 16 channels and two blocks.

    Its maps are pooled to a half, a quarter and an eighth of their size, and resized to it.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Modulation(nn.Module):
        """A map times what its parts are at four scales."""

        def __init__(self, channels: int, levels: int = 4) -> None:
            super().__init__()
            part = channels // levels
            self.depthwise = nn.ModuleList(nn.Conv2d(part, part, 3, 1, 1, groups=part) for _ in range(levels))
            self.join = nn.Conv2d(channels, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            height, width = x.shape[-2:]
            made = []
            for level, (conv, part) in enumerate(zip(self.depthwise, x.chunk(len(self.depthwise), 1), strict=True)):
                if level:
                    part = F.adaptive_max_pool2d(part, (height // 2**level, width // 2**level))
                    made.append(F.interpolate(conv(part), size=(height, width), mode="nearest"))
                else:
                    made.append(conv(part))
            return F.gelu(self.join(torch.cat(made, 1))) * x

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
            self.mix = Modulation(channels)
            self.widen = nn.Sequential(
                nn.Conv2d(channels, 2 * channels, 3, 1, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = (lambda y, norm=norm: norm(y.movedim(1, -1)).movedim(-1, 1) for norm in self.norms)
            x = self.mix(first(x)) + x
            return self.widen(second(x)) + x

    class Safmn(nn.Module):
        def __init__(self, channels: int = 16, blocks: int = 2, scale: int = 2) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, channels, 3, 1, 1)
            self.body = nn.Sequential(*(Block(channels) for _ in range(blocks)))
            self.tail = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.head(x)
            return self.tail(self.body(x) + x)

    return Safmn()


# What is printed


def _progress(name: str, found: Mapping[str, Any]) -> str:
    if found["failed"] or "refused" in found:
        return f"{name}: {found['failed'] or found['refused']}"
    return f"{name}: {_claim(found)}, {_largest(found)} off"


def text(result: Mapping[str, Any]) -> str:
    """All networks as a markdown table, and what failed below it."""
    about, networks = result["conditions"], result["networks"]
    versions = ", ".join(f"{package} {about['versions'][package]}" for package in PACKAGES)
    busy = f"; {about['warning']}" if about["warning"] else ""
    whole = {name: one for name, one in networks.items() if not one["failed"] and "refused" not in one}
    parts = [
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {versions}{busy}.",
        table(HEAD, [_row(name, one) for name, one in whole.items()]),
        *(f"{name} was refused: {one['refused']}" for name, one in networks.items() if "refused" in one),
        *(f"{name} failed: {one['failed']}" for name, one in networks.items() if one["failed"]),
        *(f"{name} takes {one['takes_unclaimed']}, which it does not claim"
          for name, one in whole.items() if one["takes_unclaimed"]),
    ]  # fmt: skip
    return "\n\n".join(parts)


HEAD = ("network", "input", "any size of", "convolutions", "batch norms", "shapes", "difference", "capture s", "rest s")


def _row(name: str, one: Mapping[str, Any]) -> list[str]:
    rest = sum(seconds for phase, seconds in one["seconds"].items() if phase != "capture")
    return [
        name,
        " x ".join(map(str, one["shape"])),
        _claim(one),
        *(" to ".join(map(str, one[key])) for key in ("convolutions", "batch_norms")),
        str(len(one["differences"])),
        _largest(one),
        f"{one['seconds']['capture']:.1f}",
        f"{rest:.1f}",
    ]


def _claim(one: Mapping[str, Any]) -> str:
    """The free axes, each with its least size and step where these are not 1."""

    def words(axis: str, size: Mapping[str, int]) -> str:
        limits = [f"from {size['min']}"] if size["min"] > 1 else []
        limits += [f"in steps of {size['step']}"] if size["step"] > 1 else []
        return f"{axis} {' '.join(limits)}".strip()

    return ", ".join(words(axis, size) for axis, size in one["free"].items()) or "none"


def _largest(one: Mapping[str, Any]) -> str:
    return f"{max(one['differences'].values()):.1e}" + (" (float32)" if one["dtype"] == "float32" else "")


if __name__ == "__main__":
    sys.exit(main())
