"""int8 on a graph: against numpy's own arithmetic, and each repair against what it promises."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from repnets.quantization import bias, equalization, ranges, rounding, sensitivity, training
from repnets.quantization.simulation import LIMIT, Rounding, Simulation, error


@pytest.fixture
def calibrated(simulation, images):
    """The network with the scales of a naive quantization, and its float logits."""
    ranges.set_activations(ranges.observe(simulation, [images]), "max")
    ranges.set_weights(simulation, "max")
    with simulation.as_float():
        want = simulation.logits([images])
    return simulation, want


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_rounding_is_that_of_symmetric_int8(axis):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 3, generator=random)
    rounding = Rounding(axis)
    rounding.enabled = True
    rounding.scale = (
        torch.rand(1 if axis is None else x.shape[axis], generator=random) * 0.01 + 0.001
    )  # some are clipped
    scale = rounding.scale.numpy()
    if axis is not None:
        scale = scale.reshape([-1 if dim == axis else 1 for dim in range(3)])
    steps = np.clip(np.round(x.numpy() / scale), -127, 127)
    assert abs(steps).max() == 127
    np.testing.assert_allclose(rounding(x).numpy(), steps * scale, rtol=1e-6)


def test_a_rounding_that_is_off_changes_nothing():
    x = torch.randn(3, 4)
    assert Rounding(None)(x) is x


def test_layers_are_those_whose_weight_and_input_are_rounded(simulation):
    assert [layer.title for layer in simulation.layers] == ["first", "depthwise", "grouped", "last"]
    assert [layer.groups for layer in simulation.layers] == [1, 8, 2, 1]
    assert simulation.layers[2].bias is None


def test_the_largest_value_of_each_channel_and_of_all_is_seen_over_all_batches(simulation, images):
    seen = ranges.observe(simulation, images.split(10))
    found = seen[simulation.layers[0].input_rounding]
    assert found.largest == pytest.approx(float(images.abs().max()))
    torch.testing.assert_close(found.by_channel[3], images.abs().amax((0, 2, 3)))
    assert found.counts.sum() == images.numel()
    assert all(one.watch is None for one in simulation.roundings)


def test_a_percentile_leaves_out_the_outliers_and_the_mean_squared_error_finds_the_best_end():
    found = ranges.Seen()
    values = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 40.0
    found.add(values)
    assert found.scale("max") * LIMIT == pytest.approx(40)
    size = values.abs().flatten()
    assert found.scale("percentile 99.9") * LIMIT == pytest.approx(float(size.quantile(0.999)), abs=40 / 2000)

    bins = found.scale("percentile 99.9") * LIMIT / (found.end / 4096)
    assert bins % 1, "scales of one step would put sums of two activations between two integers"

    def loss(scale: float) -> float:
        return float(((values / scale).round().clamp(-127, 127) * scale - values).square().mean())

    tried = [loss(40 * cut / 127) for cut in torch.linspace(0.3, 1, 71).tolist()]
    assert loss(found.scale("mse")) == pytest.approx(min(tried), rel=0.02)
    assert min(tried) < loss(40 / 127)


def test_weights_by_mean_squared_error_lose_less_than_by_the_largest_value(simulate):
    torch.manual_seed(0)
    layer = nn.Linear(4096, 3)
    with torch.no_grad():
        layer.weight.normal_()
        layer.weight[1, 7] = 12  # an outlier
    images = torch.randn(2, 4096)
    simulation = simulate(layer, images)
    ranges.set_activations(ranges.observe(simulation, [images]), "max")
    losses = {}
    for how in ranges.WEIGHTS:
        ranges.set_weights(simulation, how)
        off = (simulation.layers[0].weight_rounding(layer.weight) - layer.weight).detach()
        losses[how] = off.square().sum(1)
    assert (losses["mse"] <= losses["max"]).all()
    assert losses["mse"][1] < losses["max"][1]


def test_one_scale_a_weight_takes_the_digits_of_its_narrow_channels(calibrated):
    first = calibrated[0].layers[0]

    def lost() -> torch.Tensor:
        off = (first.weight_rounding(first.weight) - first.weight).detach()
        return (off.square().sum((1, 2, 3)) / first.weight.detach().square().sum((1, 2, 3))).sqrt()

    by_channel = lost()
    assert by_channel.max() < 0.01
    ranges.set_weights(calibrated[0], "max", per_tensor=True)
    assert lost()[0] > 0.5 and lost()[-1] < 0.01


def test_a_dead_channel_with_a_bias_gets_a_scale_at_which_the_bias_fits_int32(simulation, images):
    first = simulation.layers[0]
    with torch.no_grad():
        first.weight[2] = 0
        first.bias[2] = 0.7
    ranges.set_activations(ranges.observe(simulation, [images]), "max")
    ranges.set_weights(simulation, "max")
    step = ranges.bias_step(first.input_rounding.scale, first.weight_rounding.scale)
    assert (first.bias.double() / step).abs().max() <= 2**30 * (1 + 1e-6)


def test_snapped_biases_are_whole_steps_and_hardly_moved(calibrated):
    simulation, _ = calibrated
    before = [layer.bias.clone() for layer in simulation.layers if layer.bias is not None]
    ranges.snap_biases(simulation)
    layers = [layer for layer in simulation.layers if layer.bias is not None]
    for layer, was in zip(layers, before, strict=True):
        step = ranges.bias_step(layer.input_rounding.scale, layer.weight_rounding.scale)
        in_steps = layer.bias.double() / step
        assert (in_steps - in_steps.round()).abs().max() < 1e-3 + 1e-6 * in_steps.abs().max()
        assert ((layer.bias - was).abs() <= 0.51 * step).all()
    assert any((layer.bias != was).any() for layer, was in zip(layers, before, strict=True))


def test_equalization_leaves_the_float_network_as_it_is_and_int8_loses_less(calibrated, images):
    simulation, want = calibrated
    before = error(simulation.logits([images]), want)
    pairs = equalization.pairs(simulation)
    assert [(pair.first.title, pair.second.title) for pair in pairs] == [
        ("first", "depthwise"), ("depthwise", "grouped"), ("grouped", "last"),
    ]  # fmt: skip
    assert equalization.equalize(simulation, ranges.observe(simulation, [images]), 0.5) == 3
    with simulation.as_float():
        torch.testing.assert_close(simulation.logits([images]), want, rtol=1e-4, atol=1e-5)
    ranges.set_activations(ranges.observe(simulation, [images]), "max")
    ranges.set_weights(simulation, "max")
    assert error(simulation.logits([images]), want) < before / 2


@pytest.mark.parametrize("kind", ["hardswish", "read twice", "hardtanh", "pad of ones", "pad of edges"])
def test_what_is_not_homogeneous_or_is_read_twice_is_not_equalized(kind, images, simulate):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.first(x)
            if kind == "hardswish":
                return self.second(functional.hardswish(y)).mean((2, 3))
            if kind == "hardtanh":
                return self.second(functional.hardtanh(y)).mean((2, 3))
            if kind == "pad of ones":
                return self.second(functional.pad(y.relu(), (1, 1, 1, 1), value=1.0)).mean((2, 3))
            if kind == "pad of edges":
                return self.second(functional.pad(y.relu(), (1, 1, 1, 1), "replicate")).mean((2, 3))
            y = y.relu()
            return (self.second(y) + y).mean((2, 3))

    assert equalization.pairs(simulate(Between(), images)) == []


def test_zeros_around_an_image_are_as_good_as_nothing(images, simulate):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.second(functional.pad(self.first(x).relu(), (0, 1, 0, 1))).mean((2, 3))

    assert len(equalization.pairs(simulate(Padded(), images))) == 1


def test_behind_a_relu6_channels_are_widened_and_larger_values_than_any_seen_have_room(images, simulate):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=8)
            with torch.no_grad():
                self.first.weight *= torch.logspace(-0.5, 1.5, 8).view(-1, 1, 1, 1)

        def forward(self, x):
            return self.second(functional.relu6(self.first(x))).mean((2, 3))

    torch.manual_seed(0)
    simulation = simulate(Between(), images)
    with simulation.as_float():
        want, brighter = simulation.logits([images]), simulation.logits([1.2 * images])
    (pair,) = equalization.pairs(simulation)
    assert [end for end, _ in pair.caps] == [6.0]
    before = ranges.observe(simulation, [images])[pair.between].by_channel[8]
    assert before.min() < 1 and (before == 6).sum() >= 2
    equalization.equalize(simulation, ranges.observe(simulation, [images]), 0.5)
    after = ranges.observe(simulation, [images])[pair.between].by_channel[8]
    torch.testing.assert_close(after, before.clamp(min=4))
    with simulation.as_float():
        torch.testing.assert_close(simulation.logits([images]), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(simulation.logits([1.2 * images]), brighter, rtol=1e-4, atol=1e-5)


def test_weights_that_are_rounded_together_lose_less_of_what_they_compute(simulation, images):
    """Inputs that hardly vary beside their mean: then the errors of a kernel's weights add up."""
    bright = images + 5
    ranges.set_activations(ranges.observe(simulation, [bright]), "max")
    ranges.set_weights(simulation, "max")
    with simulation.as_float():
        want = simulation.logits([bright])
    moments = rounding.second_moments(simulation, [bright])
    with simulation.only([layer.weight_rounding for layer in simulation.layers]):
        before = error(simulation.logits([bright]), want)
        assert rounding.round_together(simulation, moments) == 4
        assert error(simulation.logits([bright]), want) < before / 2
    for layer in simulation.layers:
        steps = layer.weight.flatten(1) / layer.weight_rounding.scale[:, None]
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert steps.abs().max() <= LIMIT + 1e-4


def test_the_moments_are_those_of_what_the_kernels_read(calibrated, images):
    """By the convolution itself: the mean square of its output is w M w^T."""
    simulation, _ = calibrated
    moments = rounding.second_moments(simulation, [images])
    seen = []
    with simulation.as_float(), torch.no_grad():
        first = simulation.layers[0]
        first.input_rounding.watch = seen.append
        simulation.logits([images])
        output = nn.functional.conv2d(seen[0], first.weight, padding=1)
    flat = first.weight.flatten(1).double()
    squares = torch.einsum("ok,kl,ol->o", flat, moments[first.name][0], flat)
    torch.testing.assert_close(squares, output.double().square().sum((0, 2, 3)), rtol=1e-5, atol=0)


def test_bias_correction_makes_the_mean_of_every_layer_right(calibrated, images):
    simulation, want = calibrated
    with torch.no_grad():  # roundings that always round in one direction
        for layer in simulation.layers:
            layer.weight_rounding.scale = layer.weight_rounding.scale * 9
    off = (simulation.logits([images]) - want).mean(0)
    before = error(simulation.logits([images]), want)
    assert bias.correct(simulation, images) == 3  # one layer has no bias
    corrected = simulation.logits([images])
    assert (corrected - want).mean(0).abs().max() < 0.05 * off.abs().max()
    assert error(corrected, want) < before


def test_the_layer_that_was_spoilt_is_the_most_sensitive(calibrated, images):
    simulation, want = calibrated
    simulation.layers[2].weight_rounding.scale = simulation.layers[2].weight_rounding.scale * 30
    before = [one.enabled for one in simulation.roundings]
    found = sensitivity.sensitivities(simulation, [images], want)
    assert len(found) == 4
    assert next(iter(found)) == simulation.layers[2].name
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert [one.enabled for one in simulation.roundings] == before


def test_where_an_input_is_what_loses_its_giver_stays_in_float_too(calibrated, images):
    simulation, want = calibrated
    found = {layer.name: 0.0 for layer in simulation.layers}
    first, depthwise, grouped, last = simulation.layers
    grouped.input_rounding.scale = grouped.input_rounding.scale * 30
    found = sensitivity.sensitivities(simulation, [images], want)
    assert sensitivity.in_order(simulation, found, [images], want, 2) == {
        grouped.name: None,
        depthwise.name: grouped.name,
    }
    grouped.input_rounding.scale = grouped.input_rounding.scale / 30
    last.weight_rounding.scale = last.weight_rounding.scale * 30
    found = sensitivity.sensitivities(simulation, [images], want)
    assert sensitivity.in_order(simulation, found, [images], want, 1) == {last.name: None}
    assert next(iter(sensitivity.in_order(simulation, found, [images], want, 4))) == last.name
    assert first.name in sensitivity.in_order(simulation, found, [images], want, 4)


def test_training_in_int8_brings_the_logits_nearer_to_those_of_the_float_network(calibrated, images):
    simulation, want = calibrated
    for layer in simulation.layers:  # three bits and less
        layer.input_rounding.scale = layer.input_rounding.scale * 30
    before = error(simulation.logits([images]), want)
    teacher = Simulation(copy.deepcopy(simulation.module))
    with teacher.as_float():
        losses = list(training.distil(simulation, teacher, [images] * 40, 40, learning_rate=0.01))
    assert len(losses) == 40
    assert error(simulation.logits([images]), want) < 0.8 * before
    assert not any(layer.weight.requires_grad for layer in simulation.layers)


def test_restore_takes_back_weights_and_scales(calibrated, images):
    simulation, _ = calibrated
    saved, logits = simulation.save(), simulation.logits([images])
    bias.correct(simulation, images)
    ranges.set_weights(simulation, "mse", per_tensor=True)
    assert not torch.equal(simulation.logits([images]), logits)
    simulation.restore(saved)
    assert torch.equal(simulation.logits([images]), logits)


def test_the_rounding_of_a_weight_follows_what_is_written_to_it():
    """It is computed once for all batches, and anew where the weight or its scale was changed, in place or not."""
    rounding = Rounding(0)
    rounding.enabled, rounding.scale = True, torch.full((2,), 0.5)
    weight = torch.tensor([[0.6], [1.4]])
    with torch.no_grad():
        first = rounding(weight)
        assert rounding(weight) is first and first.tolist() == [[0.5], [1.5]]
        weight += 1
        assert rounding(weight).tolist() == [[1.5], [2.5]]
        rounding.scale.mul_(2)
        assert rounding(weight).tolist() == [[2.0], [2.0]]
        rounding.scale = torch.full((2,), 0.25)
        assert rounding(weight).tolist() == [[1.5], [2.5]]
    assert rounding(weight) is not rounding(weight)  # gradients go through each by itself
