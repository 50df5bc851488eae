"""Weights at the ends of float32: a right result, or a refusal that says what is too large."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.config.project import Verify
from pipeline.config.stages import ExportSettings, NoSettings, QuantizeSettings
from pipeline.errors import InputError
from pipeline.models import checkpoints, program_file, programs
from pipeline.stages import export, quantize, reparameterize, verify


@dataclass
class Made:
    """What stages make of a changed checkpoint."""

    checkpoint: Path
    split: Path

    @property
    def fused(self) -> Path:
        return self.checkpoint.with_name("fused.pt2")

    @property
    def verify(self) -> Path:
        return self.checkpoint.with_name("verify.json")

    @property
    def quantized(self) -> Path:
        return self.checkpoint.with_name("quantized.pt2")

    def prove(self) -> None:
        report = self.checkpoint.with_name("fuse.json")
        reparameterize.run(NoSettings(), checkpoint=self.checkpoint, split=self.split, fused=self.fused, report=report)
        verify.run(Verify(), checkpoint=self.checkpoint, split=self.split, fused=self.fused, output=self.verify)

    def quantize(self) -> None:
        quantize.run(
            QuantizeSettings(calibration_images=128, max_metric_drop=1.0), fused=self.fused, verify=self.verify,
            split=self.split, quantized=self.quantized, report=self.checkpoint.with_name("quantize.json"),
        )  # fmt: skip

    def export(self, precision: str, form: str) -> Path:
        settings = ExportSettings(target="phone", model="toy", backend="executorch", precision=precision,
                                  forms=(form,), batch=1, image_size=None, options={})  # fmt: skip
        manifest = self.checkpoint.parent / precision / "manifest.json"
        manifest.parent.mkdir()
        export.run(
            settings, checkpoint=self.checkpoint, fused=self.fused, verify=self.verify, manifest=manifest,
            quantized=self.quantized if form == "quantized" else None,
        )  # fmt: skip
        return manifest.parent


@pytest.fixture
def changed(artifacts, tmp_path):
    """A function: what stages make of the toy's checkpoint after `change(state)`."""

    def of(change) -> Made:
        state, header = checkpoints.read(artifacts.checkpoint)
        change(state)
        checkpoints.write(tmp_path / "checkpoint.safetensors", state, header)
        return Made(tmp_path / "checkpoint.safetensors", artifacts.split)

    return of


def gain(value, place=0):
    def change(state):
        names = [name for name in state if name.endswith("weight") and state[name].dim() == 1]
        state[names[place]].fill_(value)

    return change


def bias(value):
    def change(state):
        state["head.linear.bias"][0] = value

    return change


def zeros(state):
    for name, tensor in state.items():
        if tensor.is_floating_point() and "running_var" not in name:
            tensor.zero_()


@pytest.mark.parametrize("change", [gain(1e38), gain(1e38, -1)])
def test_what_overflows_in_float32_is_refused(changed, change):
    with pytest.raises(
        InputError, match=r"gives infinite or NaN numbers for 8 of 8 images.* its weights are too large"
    ):
        changed(change).prove()


@pytest.mark.parametrize(
    ("change", "layer"), [(gain(1e20), r"conv2d \(stage1\)"), (bias(-3e38), r"linear \(head\.linear\)")]
)
def test_what_float32_holds_is_fused_exactly_and_is_no_network_for_int8_or_float16(changed, change, layer):
    made = changed(change)
    made.prove()
    proved = json.loads(made.verify.read_text())
    assert proved["status"] == "ok" and proved["agreement"] == 1
    with pytest.raises(InputError, match=rf"`{layer}` gives values up to .*Their squares"):
        made.quantize()
    with pytest.raises(InputError, match=r"and float16 ends at 65,504"):
        made.export("fp16", "fused")


@pytest.mark.parametrize("change", [zeros, gain(1e-38)])
def test_zeros_are_numbers(changed, change, run_check):
    made = changed(change)
    made.prove()
    made.quantize()
    network = programs.as_module(program_file.read(made.quantized)[0])
    with torch.no_grad():
        assert network(torch.rand(2, 3, 32, 32)).isfinite().all()
    if change is zeros:
        folder = made.export("int8", "quantized")
        assert run_check(folder, "executorch", against=made, quantized=made.quantized)["status"] == "ok"
