"""`repnets fuse`: folded, proved and written, from each kind of source to each kind of file."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from pipeline.cli import main
from pipeline.config.project import Verify
from pipeline.models import program_file, programs
from repnets.networks.blocks import RepVGGBlock


def run(*words: object) -> int:
    return main.main(["fuse", *map(str, words)])


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_checkpoint_to_a_program_and_that_to_an_onnx_file(artifacts, tmp_path, capsys):
    assert run(artifacts.checkpoint, tmp_path / "fused.pt2") == 0
    said = capsys.readouterr().out
    assert "proved on random 32 x 32" in said and "in float64 the same to" in said
    assert f"wrote {tmp_path / 'fused.pt2'}" in said
    program = program_file.read(tmp_path / "fused.pt2")[0]
    assert programs.count(program)["batch_norm"] == 0 and programs.input_shapes(program)[0][0] is None

    assert run(tmp_path / "fused.pt2", tmp_path / "fused.onnx", "--size", 32) == 0
    assert "nothing to fold" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "fused.onnx")
    given = image(1, 3, 32, 32)
    want = programs.as_module(program)(given).detach().numpy()
    got = session.run(None, {session.get_inputs()[0].name: given.numpy()})[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_program_of_anyone(tmp_path, randomise, capsys):
    network = randomise(nn.Sequential(RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8), nn.Flatten())).eval()
    given = image(1, 3, 24, 16)
    torch.export.save(torch.export.export(network, (given,)), tmp_path / "theirs.pt2")
    assert run(tmp_path / "theirs.pt2", tmp_path / "fused.pt2") == 0
    fused = program_file.read(tmp_path / "fused.pt2")[0]
    assert programs.count(fused)["convolution"] == 2
    torch.testing.assert_close(programs.as_module(fused)(given), network(given), rtol=1e-4, atol=1e-5)


def test_a_named_network_to_tensors(tmp_path, capsys):
    assert run("toy", tmp_path / "toy.pth", "--size", "32x40", "--classes", "7") == 0
    assert "the weights are RANDOM" in capsys.readouterr().out
    state = torch.load(tmp_path / "toy.pth", weights_only=True)
    assert not any("running_mean" in name for name in state)
    assert 7 in {len(tensor) for tensor in state.values()}


def test_a_proof_that_fails_writes_nothing(artifacts, tmp_path, monkeypatch, capsys):
    """The limit is one that no arithmetic reaches."""
    impossible = Verify(float64_tolerance=1e-30)
    monkeypatch.setattr("pipeline.cli.fuse.Verify", lambda: impossible)
    assert run(artifacts.checkpoint, tmp_path / "fused.pt2") == 1
    assert not (tmp_path / "fused.pt2").exists() and "1e-30" in capsys.readouterr().err


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("output", "message"),
    [("fused.txt", "fused.txt is none of .pt2, .onnx, .pth"), ("no/fused.pt2", "there is no folder")],
)
def test_an_output_that_cannot_be_is_refused_first(artifacts, tmp_path, capsys, output, message):
    assert run(artifacts.checkpoint, tmp_path / output) == 2
    assert message in capsys.readouterr().err


def test_a_program_of_several_inputs_or_of_no_image_is_refused(tmp_path, capsys):
    x = torch.zeros(1, 3, 8, 8)
    torch.export.save(torch.export.export(Two(), (x, x)), tmp_path / "two.pt2")
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.zeros(2, 4),)), tmp_path / "flat.pt2")
    for name, message in (("two", "takes 2 inputs"), ("flat", "takes an input of 2 axes")):
        assert run(tmp_path / f"{name}.pt2", tmp_path / "fused.pt2") == 2
        assert message in capsys.readouterr().err
