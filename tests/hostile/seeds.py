"""Small real files for each reader, one folder a sample, which the mutations start from."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.artifacts import documents
from pipeline.artifacts.bench_result import BenchResult, ReferenceResult, TargetBench
from pipeline.artifacts.bundle_result import BundleResult
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.files_bench_result import FilesBench
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.artifacts.verify_result import VerifyResult

KINDS = {
    "manifest": Manifest,
    "check": CheckResult,
    "bench": BenchResult,
    "reference": ReferenceResult,
    "files-bench": FilesBench,
    "target-bench": TargetBench,
    "quantize": QuantizeResult,
    "verify": VerifyResult,
    "fuse": FuseResult,
    "profile": ProfileResult,
    "bundle": BundleResult,
}
"""The documents of the stages, by the name of their file here."""

REFUSED = ("few", "weights", "legacy")
"""Samples that are whole, and of another network than the reader asks for."""

CLASSES = ("cat", "dog", "owl")
FACTS = """\
@@@ uname -s
Linux
@@@ uname -r
5.15.136-tegra
@@@ uname -m
aarch64
@@@ nproc
6
@@@ /proc/meminfo
MemTotal:        7802552 kB
@@@ /proc/loadavg
0.52 0.58 0.59 1/389 12345
@@@ /proc/stat
cpu  74608 2520 24433 1117073 6176 4054 0 0 0 0
@@@ /proc/cpuinfo
model name : Cortex-A78
cpu MHz : 1510.4
@@@ /sys/fs/cgroup/cpu.max
200000 100000
@@@ /sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq
1510400
@@@ /sys/class/thermal/thermal_zone0/type
cpu-thermal
@@@ /sys/class/thermal/thermal_zone0/temp
48000
@@@ /etc/nv_tegra_release
# R36 (release), REVISION: 3.0, GCID: 1
@@@ /proc/driver/nvidia/version
NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.3.0  Release Build
@@@ disk
/dev/sda1 61255492 30246512 27864960 53% /
@@@ python
python 3.10.12
executorch 1.5.0
@@@ trtexec
100300
@@@ installed
/home/pi/toy-executorch/versions/1a2b3c4d5e6f
"""
STATE = """\
name toy-executorch
current versions/1a2b3c4d5e6f
version 1a2b3c4d5e6f
history [{"version": "1a2b3c4d5e6f", "digest": "00", "since": "2026-01-01T00:00:00Z", "by": "a@b"}]
"""
REPLIES = {
    "start": '{"imported": ["torch"], "load_ms": 1.5, "first_inference_ms": 2.5, "peak_memory_bytes": 4096}\n',
    "block": '{"ms": [1.5, 2.5, 3.5]}\n',
    "profile": '{"layers": [{"name": "conv", "kind": "convolution", "ms": 0.5}]}\n',
    "usage": '{"doing": "timing", "file": "a.pte"}\n{"cpu_seconds": 1.5}\n',
}


def build(folder: Path) -> None:
    """Fill a folder with samples: ``<reader>/<sample>/<files>``."""
    program = _programs(folder)
    _weights(folder)
    for name, kind in KINDS.items():
        documents.write(_sample(folder, "documents", name) / f"{name}.json", documents.of(kind, _filled(kind)))
    _split(folder)
    _images(folder)
    _bundle(folder, program)
    for name, index in (("list", list(CLASSES)), ("numbers", {one: n for n, one in enumerate(CLASSES)}),
                        ("names", {str(n): ["n01", one] for n, one in enumerate(CLASSES)})):  # fmt: skip
        (_sample(folder, "classes", name) / "classes.json").write_text(json.dumps(index))
    (_sample(folder, "device", "facts") / "facts.txt").write_text(FACTS)
    (_sample(folder, "device", "state") / "state.txt").write_text(STATE)
    for name, reply in REPLIES.items():
        (_sample(folder, "device", name) / f"{name}.txt").write_text(reply)


def _sample(folder: Path, reader: str, name: str = "small") -> Path:
    place = folder / reader / name
    place.mkdir(parents=True)
    return place


def _programs(folder: Path) -> Path:
    """A small network as .pt2, and what each backend writes of it; the .pte."""
    import onnx
    import torch

    from pipeline import backends
    from pipeline.artifacts.manifest import ExportSpec, Preprocessing
    from pipeline.models import program_file
    from tests.fixtures.onnx_functions import with_functions
    from tests.fixtures.small_networks import CLASSES, SHAPE, network

    program = torch.export.export(network("fused"), (torch.randn(SHAPE),))
    program_file.write(program, _sample(folder, "pt2") / "fused.pt2", {"model": "toy"})
    spec = ExportSpec("fp32", SHAPE, Preprocessing(16, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), CLASSES))
    places = {}
    for name in ("onnx", "openvino", "coreml", "executorch"):
        places[name] = _sample(folder, name)
        backend = backends.load(name)
        backend.export(program, [places[name] / file for file in backend.file_names(["fused"])], spec)
    model = onnx.load(places["onnx"] / "fused.onnx")
    with_functions(model)
    onnx.save(model, _sample(folder, "onnx", "functions") / "fused.onnx")
    return places["executorch"] / "fused.pte"


def _weights(folder: Path) -> None:
    import torch

    import repnets
    from pipeline.artifacts.checkpoint_header import CheckpointHeader
    from pipeline.artifacts.manifest import Preprocessing
    from pipeline.models import checkpoints

    state = repnets.create_model("toy", num_classes=3).state_dict()
    preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3, CLASSES)
    header = CheckpointHeader(
        arch="toy", num_classes=3, preprocessing=preprocessing, data_digest="0", epoch=1, weights="raw"
    )
    checkpoints.write(_sample(folder, "checkpoint", "whole") / "checkpoint.safetensors", state, header)
    few = {name: torch.ones(3, 2) for name in ("a.weight", "b.weight", "n_averaged")}
    checkpoints.write(_sample(folder, "checkpoint", "few") / "checkpoint.safetensors", few, header)
    torch.save({"ema": few, "epoch": 3}, _sample(folder, "pickle", "weights") / "weights.pth")
    torch.save(few, _sample(folder, "pickle", "legacy") / "weights.pt", _use_new_zipfile_serialization=False)


def _split(folder: Path) -> None:
    from pipeline.data import splits

    parts = {"train": (0, 1, 2), "val": (3, 4)}
    sources = {f"{n}.png": f"{n}" * 64 for n in range(5)}
    split = splits.new_split("imagefolder", "data", CLASSES, sources, (0, 1, 2, 0, 1), parts)
    splits.write_split(_sample(folder, "documents", "split") / "split.json", split)


def _images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.arange(24 * 16 * 3, dtype=np.uint8).reshape(24, 16, 3)
    colour, deep = Image.fromarray(pixels), Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    for suffix in ("bmp", "gif", "jpeg", "png", "ppm", "tiff", "webp"):
        colour.save(_sample(folder, "image", suffix) / f"image.{suffix}")
    for suffix in ("png", "tiff"):
        deep.save(_sample(folder, "image", f"deep-{suffix}") / f"image.{suffix}")
    colour.save(_sample(folder, "image", "squeezed") / "image.tiff", compression="tiff_lzw")
    colour.quantize(8).save(_sample(folder, "image", "palette") / "image.png", transparency=1)


def _bundle(folder: Path, file: Path) -> None:
    from pipeline.artifacts.bundle_result import BundleManifest, GoldenCase
    from pipeline.deploy import bundle_file

    sample = _sample(folder, "bundle")
    manifest = documents.of(BundleManifest, _filled(BundleManifest))
    manifest = replace(
        manifest, model="toy", target="phone", backend="executorch", file=file.name, run=("python3", "selftest.py"),
        golden=(GoldenCase("golden/input0.bin", "golden/output0.bin", (0,)),),
    )  # fmt: skip
    members = {file.name: file, "selftest.py": b"print()\n", "labels.txt": b"cat\n", "golden/input0.bin": b"\0" * 64,
               "golden/output0.bin": b"\0" * 16}  # fmt: skip
    bundle_file.write(sample, members, manifest)


def _filled(kind: Any) -> Any:
    """A document, or a part of one, as JSON types, with one element in each list and mapping."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {one.name: _filled(hints[one.name]) for one in fields(kind) if _is_given(one)}
    inner, origin = get_args(kind), get_origin(kind)
    if NoneType in inner:
        return _filled(next(one for one in inner if one is not NoneType))
    if origin is Mapping:
        return {"fused": _filled(inner[1])}
    if origin is tuple:
        return (
            [_filled(inner[0])] * (3 if inner[0] is float else 1)
            if inner[-1] is Ellipsis
            else list(map(_filled, inner))
        )
    if origin is Literal:
        return inner[0]
    return {"note": 1} if kind is Any else _filled(inner[0]) if inner else "some" if kind is str else kind(1)


def _is_given(field: Any) -> bool:
    """`inputs` stay out: a network of several has no mean and std."""
    return field.name != "inputs" and field.default in (MISSING, None)
