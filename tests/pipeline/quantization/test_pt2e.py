"""From a fused program to an int8 one: the graph that is quantized, and that its simulation is what comes out."""

import pytest
import torch
from torch import nn

import repnets
from pipeline.models import programs
from pipeline.quantization import pt2e
from repnets.fusion.capture import capture
from repnets.networks.blocks import RepVGGBlock
from repnets.quantization import ranges


@pytest.fixture(scope="module")
def program():
    """Fused: two RepVGG blocks, the second gated, a mean without its dimensions, a linear layer."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = RepVGGBlock(3, 32, 2), RepVGGBlock(32, 32, use_se=True)
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            return self.head(self.second(self.first(x)).mean((-2, -1)))

    network = Net().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    example = torch.zeros(2, 3, 16, 16)
    return capture(repnets.fuse(network, example).module, example)


@pytest.fixture
def images():
    return torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def calibrated(prepared, images):
    found = pt2e.simulation(prepared)
    ranges.set_activations(ranges.observe(found, [images]), "max")
    ranges.set_weights(found, "max")
    return found


def test_a_mean_over_the_image_keeps_its_dimensions_and_the_network_computes_the_same(program, images):
    network = pt2e.network(program)
    means = network.graph.find_nodes(op="call_function", target=torch.ops.aten.mean.dim)
    assert means and all(node.args[2] is True for node in means)
    assert torch.equal(network(images), programs.as_module(program)(images))
    assert "flatten" not in str(program.graph), "the fused program itself is left as it is"


def test_the_program_gives_what_its_simulation_gave_bit_by_bit(program, images):
    prepared = pt2e.prepare(pt2e.network(program))
    found = calibrated(prepared, images)
    made = programs.as_module(pt2e.convert(prepared, found, (2, 3, 16, 16)))
    with torch.no_grad():
        assert torch.equal(made(images), found(images))
        assert made(images[:3, :, :12, :10]).shape == (3, 5), "batch and size stay free"
        assert not torch.equal(made(images), programs.as_module(program)(images))


class Clamped(nn.Module):
    """Convolutions of large outputs, of which a ReLU6 leaves little."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=16)
        self.relu, self.head = nn.ReLU6(inplace=True), nn.Linear(16, 5)
        with torch.no_grad():
            self.first.weight.mul_(100)

    def forward(self, x):
        x = nn.functional.relu6(self.second(self.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def test_what_a_relu6_cuts_off_takes_no_digits(images):
    """The range of what comes out of the first convolution is over ten times that of what the ReLU6 leaves."""
    torch.manual_seed(0)
    prepared = pt2e.prepare(pt2e.network(capture(Clamped().eval(), images)))
    found = calibrated(prepared, images)
    clamps = [node for node in found.module.graph.nodes if str(node.target).startswith(("aten.hardtanh", "aten.relu6"))]
    assert [str(node.args[0].target) for node in clamps] == ["aten.conv2d.default"] * 2, "nothing is rounded between"
    scales = [found.module.get_submodule(str(next(iter(node.users)).target)).scale for node in clamps]
    assert scales[0] == 6 / 127 and scales[1] <= 6 / 127


def test_a_layer_before_a_relu6_that_stays_in_float(images):
    torch.manual_seed(0)
    network = pt2e.network(capture(Clamped().eval(), images))
    first = next(node.name for node in network.graph.nodes if str(node.target).startswith("aten.conv2d"))
    made = pt2e.convert(kept := pt2e.prepare(network, in_float=(first,)), calibrated(kept, images), (2, 3, 16, 16))
    assert programs.count(made)["int8"] == 2
    assert (
        programs.count(pt2e.convert(whole := pt2e.prepare(network), calibrated(whole, images), (2, 3, 16, 16)))["int8"]
        == 3
    )


def test_of_a_weight_only_its_integers_and_scales_are_stored(program, images):
    prepared = pt2e.prepare(pt2e.network(program))
    made = pt2e.convert(prepared, calibrated(prepared, images), (2, 3, 16, 16))
    tensors = [one for one in (*made.state_dict.values(), *made.constants.values()) if isinstance(one, torch.Tensor)]
    assert sum(one.dtype is torch.int8 for one in tensors) == 5
    assert max(one.dim() for one in tensors if one.dtype is not torch.int8) == 1


def test_biases_of_the_program_are_whole_steps_of_the_accumulators(program, images):
    prepared = pt2e.prepare(pt2e.network(program))
    found = calibrated(prepared, images)
    pt2e.convert(prepared, found, (2, 3, 16, 16))
    for layer in found.layers:
        steps = layer.bias.double() / ranges.bias_step(layer.input_rounding.scale, layer.weight_rounding.scale)
        assert (steps - steps.round()).abs().max() < 1e-6 * steps.abs().max() + 1e-3


def test_every_layer_is_int8_and_what_is_not_known_is_named(program):
    prepared = pt2e.prepare(pt2e.network(program))
    assert programs.count(program)["convolution"] + 1 == len(pt2e.simulation(prepared).layers)
    assert pt2e.in_float(prepared) == {"aten.sigmoid": 1}


class Shared(nn.Module):
    """A layer that is called at two scales, as the heads of detectors are."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        fine = self.stem(x).relu()
        coarse = nn.functional.max_pool2d(fine, 2)
        return self.head(fine).relu().mean((2, 3)) - 3 * self.head(coarse).relu().mean((2, 3))


def test_a_layer_that_is_called_twice_is_int8_both_times_and_stored_once(images):
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 16, 16)
    prepared = pt2e.prepare(pt2e.network(capture(Shared().eval(), example)))
    assert not any(name.startswith("aten.conv") for name in pt2e.in_float(prepared))
    found = calibrated(prepared, images)
    _, fine, coarse = found.layers
    assert fine.weight_rounding is coarse.weight_rounding and fine.bias is not coarse.bias
    program = pt2e.convert(prepared, found, example.shape)
    assert programs.count(program)["int8"] == 3
    assert sum(tensor.dtype == torch.int8 and tensor.dim() == 4 for tensor in program.state_dict.values()) == 2
    for layer in (fine, coarse):  # whole steps of its own input
        step = layer.input_rounding.scale * layer.weight_rounding.scale
        steps = layer.bias / step
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2)
    with torch.no_grad():
        assert torch.equal(programs.as_module(program)(images), found(images))


def test_a_layer_that_is_to_stay_in_float_has_no_rounding(program):
    network = pt2e.network(program)
    name = pt2e.simulation(pt2e.prepare(network)).layers[1].name
    layers = [layer.name for layer in pt2e.simulation(pt2e.prepare(network, [name])).layers]
    assert name not in layers
    assert len(layers) == len(pt2e.simulation(pt2e.prepare(network)).layers) - 1


def test_a_tiny_weight_keeps_its_digits(images):
    """XNNPACK's own configuration floors every scale at 2^-12, which leaves such a weight a digit or two."""
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        layer[0].weight *= 1e-3
        layer[0].bias.zero_()
    prepared = pt2e.prepare(pt2e.network(capture(layer, images[:2])))
    found = calibrated(prepared, images)
    program = pt2e.convert(prepared, found, (2, 3, 16, 16))
    stored = [one for one in program.state_dict.values() if one.dtype is torch.int8]
    stored += [one for one in program.constants.values() if isinstance(one, torch.Tensor) and one.dtype is torch.int8]
    assert [int(one.abs().max()) for one in stored] == [127]


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("in_float", [(), ("conv2d_1",)])
def test_padding_takes_the_range_of_what_it_pads_and_is_float_before_a_float_layer(images, in_float, mode):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, stride=2)

        def forward(self, x):
            return self.second(nn.functional.pad(self.first(x).relu(), (0, 1, 0, 1), mode))

    network = pt2e.network(capture(Padded().eval(), images[:2]))
    found = pt2e.simulation(pt2e.prepare(network, in_float))
    (pad,) = found.module.graph.find_nodes(op="call_function", target=torch.ops.aten.pad.default)
    (reader,) = pad.users
    if in_float:
        assert reader.target is torch.ops.aten.conv2d.default
    else:
        assert found.rounding(reader).group == found.rounding(pad.args[0]).group


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_has_a_scale_for_each_output_channel_or_is_in_float(images, groups, activation):
    layer = nn.ConvTranspose2d(4, 8, 2, 2, groups=groups)
    network = pt2e.network(capture(nn.Sequential(nn.Conv2d(3, 4, 3), layer, activation).eval(), images[:2]))
    found = pt2e.simulation(pt2e.prepare(network))
    axes = [one.weight_rounding.axis for one in found.layers if one.is_transposed]
    assert axes == ([1] if groups == 1 else [])


@pytest.mark.parametrize("average", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2)])
def test_an_average_has_a_range_of_its_own(images, average):
    network = pt2e.network(capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), average).eval(), images[:2]))
    found = pt2e.simulation(pt2e.prepare(network))
    (pool,) = found.module.graph.find_nodes(op="call_function", target=torch.ops.aten.adaptive_avg_pool2d.default)
    (reader,) = pool.users
    assert found.rounding(reader).group != found.rounding(pool.args[0]).group


def test_a_batch_norm_that_is_left_changes_nothing_for_other_readers_of_its_convolution(images):
    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
            nn.init.uniform_(self.norm.running_var, 2, 3)

        def forward(self, x):
            x = self.first(x)
            return x + self.second(self.norm(x).relu())

    model = PreActivation().eval()
    found = pt2e.simulation(pt2e.prepare(pt2e.network(capture(model, images[:2]))))
    with torch.no_grad(), found.as_float():
        torch.testing.assert_close(found(images), model(images))


def test_no_int8_constant_is_without_a_dimension(images):
    """TensorRT refuses such a one."""

    class Gains(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gain = nn.Conv2d(3, 8, 3), nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            x = self.first(x)
            return self.gain * x + (x + 3).relu()

    prepared = pt2e.prepare(pt2e.network(capture(Gains().eval(), images[:2])))
    program = pt2e.convert(prepared, calibrated(prepared, images), (2, 3, 16, 16))
    stored = [*program.state_dict.values(), *program.constants.values()]
    ranks = [one.dim() for one in stored if isinstance(one, torch.Tensor) and one.dtype is torch.int8]
    assert sorted(ranks) == [1, 1, 4]
