import copy
import re
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backends.pytorch import backend
from pipeline.backends.worker import client
from pipeline.errors import InputError
from pipeline.models import program_file
from pipeline.models import programs as programs_of
from pipeline.models.passes.float16 import half
from repnets.fusion.capture import capture


@pytest.fixture(scope="module")
def half_file(programs, tmp_path_factory):
    file = tmp_path_factory.mktemp("half") / "fused.pt2"
    torch.export.save(half(programs["fused"]), file)
    return file


class InPlace(nn.Module):
    """Operations that overwrite what the one before them gave."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.conv(x)).mul_(2).mean((2, 3))


@pytest.mark.parametrize("form", ["fused", "branched"])
def test_numbers_are_those_of_the_program(program_files, programs, image, form):
    logits = backend.open_session(program_files[form], 1)(image.numpy())[0]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, programs[form].module()(image).detach().numpy(), rtol=1e-6, atol=1e-6)


def test_exact_computes_a_half_program_in_float32_on_its_own_weights(half_file, programs, image):
    own, exact = (open_(half_file, 1)(image.numpy())[0] for open_ in (backend.open_session, backend.open_exact_session))
    module = copy.deepcopy(programs["fused"].module())  # the parameters are the program's own
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
    np.testing.assert_allclose(exact, module(image).detach().numpy(), rtol=1e-6, atol=1e-6)
    assert 1e-5 < np.abs(own - exact).max() / np.abs(exact).max() < 5e-3, "its own arithmetic must be float16"


def test_census_counts_what_the_program_holds(program_files, half_file):
    fused, branched, halved = map(backend.census, (program_files["fused"], program_files["branched"], half_file))
    assert (fused["convolution"], fused["batch_norm"], fused["aten.relu"], fused["total"]) == (3, 0, 3, 9)
    assert (branched["convolution"], branched["batch_norm"]) == (6, 7)
    assert (fused["join"], branched["join"], halved["join"]) == (0, 4, 0)
    assert halved["total"] == fused["total"] + 2, "casts count, assertions do not"


def test_each_layer_gives_what_the_program_gives_there(program_files, programs, image):
    got = backend.outputs_by_layer(program_files["fused"], image.numpy())
    assert [name for name in got if name.startswith("conv")] == ["conv2d", "conv2d_1", "conv2d_2"]
    assert list(got)[-1] == "linear"
    first = nn.functional.conv2d(
        image, *(programs["fused"].state_dict[f"0.{name}"] for name in ("weight", "bias")), 2, 1
    )
    np.testing.assert_allclose(got["conv2d"], first.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["linear"], programs["fused"].module()(image).detach().numpy(), rtol=1e-6, atol=1e-6)


def test_a_layer_is_read_before_the_next_overwrites_it(tmp_path, image):
    network = InPlace().eval()
    torch.export.save(torch.export.export(network, (image,)), tmp_path / "net.pt2")
    got = backend.outputs_by_layer(tmp_path / "net.pt2", image.numpy())
    assert got["conv2d"].min() < 0
    np.testing.assert_array_equal(got["relu_"], got["conv2d"].clip(0))
    np.testing.assert_array_equal(got["mul_"], 2 * got["relu_"])


def test_exact_layers_are_float32_too(half_file, image):
    own, exact = (backend.outputs_by_layer(half_file, image.numpy(), exact=exact) for exact in (False, True))
    assert own.keys() == exact.keys()
    as_half = {name: (value == value.astype(np.float16)).all() for name, value in exact.items()}
    assert not as_half["conv2d"] and (own["conv2d"] == own["conv2d"].astype(np.float16)).all()


def test_the_worker_runs_it(program_files, programs, image):
    got = client.predict("pytorch", program_files["fused"], image.numpy(), session="exact")
    np.testing.assert_allclose(got, programs["fused"].module()(image).detach().numpy(), rtol=1e-6, atol=1e-6)
    assert "conv2d_2" in client.outputs_by_layer("pytorch", program_files["fused"], image.numpy())


def test_a_program_of_any_size_runs_at_any_size(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    free = torch.export.Dim.AUTO
    program = torch.export.export(network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: free, 2: free, 3: free},))
    torch.export.save(program, tmp_path / "any.pt2")
    assert programs_of.input_shapes(program) == [(None, 3, None, None)]
    assert programs_of.shape_of(programs_of.outputs(program)[""]) == (None, 4)
    run = backend.open_session(tmp_path / "any.pt2", 1)
    assert run(np.zeros((1, 3, 20, 30), np.float32))[0].shape == (1, 4)
    with pytest.raises(
        InputError, match=re.escape("takes an input of shape (None, 3, None, None), but got (1, 4, 16, 16)")
    ):
        run(np.zeros((1, 4, 16, 16), np.float32))


def test_a_size_that_the_program_itself_refuses_is_told_with_the_files_name(tmp_path):
    network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    program_file.write(capture(network, torch.zeros(1, 3, 16, 16)), tmp_path / "even.pt2", {})
    assert backend.open_session(tmp_path / "even.pt2", 1)(np.zeros((1, 3, 18, 2), np.float32))[0].shape == (1, 4)
    fed, told = np.zeros((1, 3, 18, 7), np.float32), r"even\.pt2 does not take an input of shape \(1, 3, 18, 7\): Guard"
    for feed in (
        lambda: backend.open_session(tmp_path / "even.pt2", 1)(fed)[0],
        lambda: backend.outputs_by_layer(tmp_path / "even.pt2", fed),
    ):
        with pytest.raises(InputError, match=told):
            feed()


def test_another_shape_than_the_files_own_is_refused(program_files):
    fed = np.zeros((2, 3, 16, 16), np.float32)
    for feed in (
        lambda: backend.open_session(program_files["fused"], 1)(fed)[0],
        lambda: backend.outputs_by_layer(program_files["fused"], fed),
    ):
        with pytest.raises(
            InputError, match=re.escape("takes an input of shape (1, 3, 16, 16), but got (2, 3, 16, 16)")
        ):
            feed()


@pytest.mark.slow
def test_a_quantized_program_is_read_where_no_quantizer_was_imported(elsewhere_quantized, image):
    counted = backend.census(elsewhere_quantized)
    assert counted["convolution"] == 3 and counted["quantized_decomposed.quantize_per_tensor"] > 3
    assert client.predict("pytorch", elsewhere_quantized, image.numpy()).shape == (1, 5)


@pytest.fixture
def elsewhere_quantized(program_files, tmp_path):
    """fused.pt2 quantized to int8 in another process, so that this one has not seen the operators."""
    import subprocess
    import sys

    code = f"""
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
program = torch.export.load({str(program_files["fused"])!r})
quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
prepared = prepare_pt2e(program.module(), quantizer)
prepared(torch.randn(1, 3, 16, 16))
quantized = torch.export.export(convert_pt2e(prepared), (torch.zeros(1, 3, 16, 16),))
torch.export.save(quantized, {str(tmp_path / "quantized.pt2")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / "quantized.pt2"


def _empty(file):
    file.write_bytes(b"")


def _text(file):
    file.write_text("epoch 1")


def _cut_short(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _other_archive(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.txt", "nothing")


def _damaged(file):
    content = file.read_bytes()
    at = content.index(b'"nodes"')
    file.write_bytes(content[:at] + b"!" + content[at + 1 :])


@pytest.mark.parametrize("use", [backend.census, lambda file: backend.open_session(file, 1)], ids=["census", "open"])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file.unlink(), "does not exist. Build it first: snakemake"),
        (_empty, "is no torch.export program, or was cut short. Build it again."),
        (_text, "is no torch.export program, or was cut short. Build it again."),
        (_cut_short, "is no torch.export program, or was cut short. Build it again."),
        (_other_archive, "is no torch.export program that torch "),
        (_damaged, "is no torch.export program that torch "),
    ],
    ids=["missing", "empty", "text", "truncated", "another archive", "damaged"],
)
def test_a_bad_file_is_named(program_files, tmp_path, use, damage, told):
    file = tmp_path / "bad.pt2"
    file.write_bytes(program_files["fused"].read_bytes())
    damage(file)
    with pytest.raises(InputError, match=rf"bad\.pt2 {re.escape(told)}"):
        use(file)
