"""Padding in int8 is left to XNNPACK as integers; any other rounding behind a padding stays."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.backends.executorch import backend
from pipeline.models import programs
from pipeline.models.passes.int8_padding import round_before_pads
from pipeline.quantization import pt2e
from repnets.fusion.capture import capture
from repnets.quantization import ranges

QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
SHAPE = (1, 3, 16, 16)


class Padded(nn.Module):
    """A convolution, padding that differs at its ends, a depthwise convolution, a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, stride=2, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = functional.relu6(self.first(x))
        return self.head(self.second(functional.pad(y, (1, 2, 1, 2))).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    return torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(images):
    """In int8, of static shape."""
    torch.manual_seed(0)
    prepared = pt2e.prepare(pt2e.network(capture(Padded().eval(), images[:2])))
    simulation = pt2e.simulation(prepared)
    ranges.set_activations(ranges.observe(simulation, [images]), "max")
    ranges.set_weights(simulation, "max")
    return programs.static(programs.as_module(pt2e.convert(prepared, simulation, (2, 3, 16, 16))), SHAPE)


def behind_pads(program):
    """What reads the paddings of a program."""
    pads = program.graph.find_nodes(op="call_function", target=torch.ops.aten.pad.default)
    return [str(user.target) for pad in pads for user in pad.users]


def test_the_second_of_two_equal_roundings_is_left_out_and_the_network_stays(program, images):
    assert behind_pads(program) == [QUANTIZE]
    written = round_before_pads(program)
    assert behind_pads(written) == ["aten.conv2d.default"]
    assert behind_pads(program) == [QUANTIZE], "the program that was given is left as it is"
    for image in images.split(1):
        assert torch.equal(written.module()(image), program.module()(image))


@pytest.mark.parametrize(
    ("scale", "value"), [(0.25, 0.0), (0.5, 1.0)], ids=["another scale behind it", "padding by ones"]
)
def test_any_other_rounding_behind_a_padding_stays(scale, value):
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401, for the operators

    steps = torch.ops.quantized_decomposed

    def rounded(x, scale):
        limits = 0, -127, 127, torch.int8
        return steps.dequantize_per_tensor(steps.quantize_per_tensor(x, scale, *limits), scale, *limits)

    class Between(nn.Module):
        def forward(self, x):
            return rounded(functional.pad(rounded(x, 0.5), (0, 1, 0, 1), value=value), scale) + 1

    program = torch.export.export(Between(), (torch.randn(SHAPE),))
    assert behind_pads(program) == [QUANTIZE]
    assert round_before_pads(program) is program


@pytest.mark.slow
def test_xnnpack_pads_integers(program, spec, images, tmp_path):
    file = tmp_path / "x.pte"
    facts = backend.export(program, [file], spec("int8"))
    assert facts["fully_delegated"] and facts["delegate_calls"] == 1
    found = backend.census(file)
    assert found["XNNStaticConstantPad"] == 1 and found["XNNConvert"] == 2  # of the image and of the logits alone
    session = backend.RUNTIME.open_session(file, 1)
    digit = 1.01 * step_of_logits(program)
    for image in images.split(1):
        want = program.module()(image)
        assert torch.allclose(torch.from_numpy(session(image.numpy())[0].copy()), want, rtol=0, atol=digit)


def step_of_logits(program):
    """What 1 stands for in the logits."""
    return next(node for node in reversed(program.graph.nodes) if "dequantize_per_tensor" in str(node.target)).args[1]
