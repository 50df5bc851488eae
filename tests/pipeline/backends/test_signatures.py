import re

import pytest
import torch
from torch import nn

from pipeline import backends
from pipeline.backends import signatures
from pipeline.backends.coreml import backend as coreml
from pipeline.backends.executorch import backend as executorch
from pipeline.backends.onnx import backend as onnx
from pipeline.backends.signatures import Tensor
from pipeline.errors import InputError

SHAPE = (1, 3, 16, 16)
COREML = {"normalization": False, "class_labels": False, "minimum_deployment_target": "iOS16"}


@pytest.mark.parametrize(
    ("backend", "name", "options"),
    [
        (onnx, "x.onnx", {}),
        (executorch, "x.pte", {}),
        pytest.param(coreml, "x.mlpackage", COREML, marks=pytest.mark.slow),
        pytest.param(coreml, "x.mlpackage", COREML | {"normalization": True}, marks=pytest.mark.slow),
    ],
    ids=["onnx", "pte", "mlpackage", "mlpackage that takes an image"],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_shapes_are_those_of_the_program(programs, spec, tmp_path, backend, name, options, precision):
    backend.export(programs["fused"], [tmp_path / name], spec(precision, **options))
    found = signatures.read(tmp_path / name)
    assert (found.input.shape, found.example) == (SHAPE, SHAPE)
    assert [one.shape for one in found.outputs] == [(1, 5)] and found.classes == 5
    assert found.takes_pixels == options.get("normalization", False) and not found.gives_probabilities


def test_a_saved_program_says_what_it_was_made_with(program_files, tmp_path):
    assert signatures.read(program_files["fused"]) == signatures.Signature(Tensor(SHAPE), (Tensor((1, 5)),), SHAPE)
    free, network = torch.export.Dim.AUTO, nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sizes = ({0: free, 2: free, 3: free},)
    program = torch.export.export(network.eval(), (torch.zeros(2, 3, 20, 24),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "any.pt2")
    want = signatures.Signature(Tensor((None, 3, None, None)), (Tensor((None, 4)),), (2, 3, 20, 24))
    assert signatures.read(tmp_path / "any.pt2") == want


def test_an_onnx_file_may_leave_sizes_free(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    free = torch.export.Dim.DYNAMIC
    exported = torch.onnx.export(
        network, (torch.zeros(2, 3, 20, 24),), dynamo=True, verbose=False, dynamic_shapes=({0: free, 2: free, 3: free},)
    )
    exported.save(tmp_path / "any.onnx")
    found = signatures.read(tmp_path / "any.onnx")
    assert found.input.shape == found.example == (None, 3, None, None)
    assert [one.shape for one in found.outputs] == [(None, 4)]


def test_an_engine_says_nothing_but_must_be_one(tmp_path):
    (tmp_path / "x.engine").write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)))
    assert signatures.read(tmp_path / "x.engine") is None
    (tmp_path / "x.engine").write_text("text")
    with pytest.raises(InputError, match=re.escape("x.engine is not a TensorRT engine")):
        signatures.read(tmp_path / "x.engine")


def test_what_takes_no_images_is_refused(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), tmp_path / "linear.pt2")
    with pytest.raises(InputError, match=re.escape("linear.pt2 takes (1, 3), and not a batch of images (N, C, H, W).")):
        signatures.read(tmp_path / "linear.pt2")


@pytest.mark.parametrize("cut", [0, 20, 0.9])
def test_a_damaged_pte_is_named(programs, spec, tmp_path, cut):
    file = tmp_path / "x.pte"
    executorch.export(programs["fused"], [file], spec())
    file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size) if cut < 1 else cut])
    with pytest.raises(InputError, match=r"x\.pte is"):
        signatures.read(file)


@pytest.mark.parametrize("suffix", sorted(backends.suffixes()))
def test_a_file_is_known_by_its_suffix(tmp_path, suffix):
    name = backends.by_suffix(tmp_path / f"fused{suffix}")
    assert suffix in backends.load(name).suffixes


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.onx", "a.onx has the suffix `.onx`, so it is unclear what runs it; did you mean `.onnx`?"),
        (
            "a.bin",
            "a.bin has the suffix `.bin`, so it is unclear what runs it; known: .mlpackage, .pte, .onnx",
        ),
        ("a", "a has no suffix, so it is unclear what runs it; known: .mlpackage, .pte"),
    ],
)
def test_an_unknown_suffix_is_told_what_is_known(tmp_path, name, told):
    with pytest.raises(InputError, match=re.escape(told)):
        backends.by_suffix(tmp_path / name)
