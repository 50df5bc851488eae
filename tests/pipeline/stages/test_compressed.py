"""Core ML files that compress weights alone, exported and checked by the stages; and such files damaged."""

import json
import shutil

import pytest
import torch

from pipeline.errors import GateError

pytestmark = pytest.mark.slow
TARGETS = {"w8": "iOS16", "w4": "iOS18", "palette6": "iOS16"}


@pytest.fixture
def made(exported_toy, tmp_path):
    """A function: a copy of the folder of the toy, exported by a scheme."""

    def folder_of(scheme, *forms, **options):
        options = {"minimum_deployment_target": TARGETS[scheme], **options}
        source = exported_toy("coreml", scheme, forms or ("fused",), **options)
        return shutil.copytree(source, tmp_path / source.parent.name)

    return folder_of


@pytest.mark.parametrize(
    ("scheme", "ends"),
    [("w8", {}), ("w4", {}), ("palette6", {"normalization": True, "class_labels": True})],
    ids=["w8", "w4", "a classifier of palettes that takes an image"],
)
def test_a_compressed_file_is_held_by_all_gates(made, scheme, ends, run_check):
    folder = made(scheme, **ends)
    checked = run_check(folder, "coreml", max_metric_drop=0.2)["forms"]["fused"]
    assert 0 < checked["converter"]["max_relative_error"] < checked["converter"]["tolerance"] < 6e-4
    assert 1e-5 < checked["precision"]["max_relative_error"] < 5e-3, "in half precision, on the weights of the file"
    facts = json.loads((folder / "manifest.json").read_text())["forms"]["fused"]["facts"]
    assert facts["left_in_float16"] == ["conv2d", "linear"]


def test_the_compressed_baseline_is_held_by_its_accuracy(made, run_check):
    folder = made("w8", "fused", "branched")
    branched = run_check(folder, "coreml", max_metric_drop=0.2)["forms"]["branched"]
    assert "folds batch norms before it rounds" in branched["converter"]["not_checked"]
    assert "its accuracy is held" in branched["precision"]["not_checked"]


@pytest.fixture
def damaged(made, tmp_path, believed):
    """A function: a copy of a scheme's folder in which weight.bin was changed by a function of its bytes."""

    def damage(scheme, change):
        folder = shutil.copytree(made(scheme), tmp_path / "toy")
        path = folder / "fused.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)
        believed(folder, "fused.mlpackage")
        return folder

    return damage


@pytest.mark.parametrize("scheme", TARGETS)
def test_one_stored_weight(damaged, scheme, run_check):
    def change(content):
        content[len(content) // 2] ^= 0x88  # the last stage's weights, all but all of the file

    with pytest.raises(GateError, match=rf"of the layer conv2d_2 is .*, where `{scheme}` rounds by at most"):
        run_check(damaged(scheme, change), "coreml", max_metric_drop=1.0)


def test_one_bias_beside_compressed_weights(artifacts, damaged, run_check):
    bias = torch.export.load(artifacts.fused).state_dict["stage3.bias"].half().numpy().tobytes()

    def change(content):
        at = content.find(bias)
        assert at >= 0
        content[at : at + 2] = b"\x00\x44"  # 4.0

    with pytest.raises(GateError, match=r"with equally rounded weights, both in float32.* departs is conv2d_2"):
        run_check(damaged("w8", change), "coreml", max_metric_drop=1.0)
