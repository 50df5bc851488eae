"""What int8 will do to a fused network: against numbers got otherwise, and whom it blames."""

import copy
import json
import math
from functools import cache

import pytest
import torch
from torch import nn

import repnets
from repnets.networks import blocks
from repnets.networks.repvgg import build
from repnets.quantization import causes
from repnets.quantization.forecast import HURTS

SIZE = 16


def images(count: int = 32, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, SIZE, SIZE, generator=generator) for _ in range(2)]


def small(block: str = "plain", classes: int = 10, seed: int = 0) -> nn.Module:
    """A small network of RepVGG's table, whose batch norms are far from their defaults and not yet calibrated."""
    torch.manual_seed(seed)
    model = build(classes, (2, 3, 1, 1), (0.25, 0.25, 0.25, 0.25), block=block)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def calibrated(model: nn.Module, norm: str | None = None, by: float = 60.0, every: int = 8) -> nn.Module:
    """With statistics of images; every eighth channel of one batch norm had so many times the weight before that."""
    if norm is not None:
        with torch.no_grad():
            model.get_submodule(norm).weight[::every] *= by
    return repnets.recalibrated(model, images(seed=0))


def fused(model: nn.Module) -> repnets.FuseResult:
    return repnets.fuse(model, torch.zeros(1, 3, SIZE, SIZE))


@cache
def made(norm: str | None = None, block: str = "plain", by: float = 60.0, every: int = 8, classes: int = 10):
    """A calibrated network and its fold. Do not change them."""
    model = calibrated(small(block, classes), norm, by, every)
    return model, fused(model)


def forecast(model: nn.Module, result: repnets.FuseResult | None = None) -> repnets.Forecast:
    return repnets.forecast(model, result or fused(model), images())


def in_int8(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """By torch's own kernel, from the range."""
    return torch.fake_quantize_per_tensor_affine(x, float(largest) / 127, 0, -127, 127)


def decibels(signal: torch.Tensor, noise: torch.Tensor) -> float:
    return 10 * math.log10(float(signal.square().sum() / noise.square().sum()))


# Numbers


def test_figures_of_a_weight_by_another_computation():
    model, result = made()
    weight = result.module.get_submodule("stage2.1").weight.double()
    row = next(one for one in repnets.forecast(model, result).layers if one.name == "stage2.1").weight
    largest = [float(channel.abs().max()) for channel in weight]
    by_channel = torch.stack([in_int8(channel, channel.abs().max()) for channel in weight])
    taps = weight.diagonal()[1, 1] if weight.dim() == 2 else torch.stack([weight[c, c, 1, 1] for c in range(32)])
    beside = weight.clone()
    for channel in range(32):
        beside[channel, channel, 1, 1] = 0
    rest = beside.flatten(1).norm(dim=1) / math.sqrt(32 * 9 - 1)
    assert row.largest == pytest.approx(max(largest))
    assert row.widest == largest.index(max(largest))
    assert row.spread == pytest.approx(max(largest) / sorted(largest)[15])
    assert row.peak == pytest.approx(max(float(c.abs().max() / c.square().mean().sqrt()) for c in weight))
    assert row.snr_db == pytest.approx(decibels(weight, by_channel - weight), abs=0.01)
    assert row.snr_db_per_tensor == pytest.approx(
        decibels(weight, in_int8(weight, weight.abs().max()) - weight), abs=0.01
    )
    assert row.snr_db_beside_tap == pytest.approx(decibels(beside, by_channel - weight), abs=0.01)
    alone = torch.stack([in_int8(channel, channel.abs().max()) for channel in beside])
    assert row.snr_db_without_tap == pytest.approx(decibels(beside, alone - beside), abs=0.01)
    assert row.tap == pytest.approx(float((taps.abs() / rest).median()))
    assert row.snr_db_per_tensor < row.snr_db and row.snr_db_beside_tap < row.snr_db


def test_figures_of_an_activation_are_those_of_the_branched_network():
    model, result = made()
    seen = []
    hook = model.get_submodule("stage2.1").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.cat(images()))
    hook.remove()
    (x,) = seen
    row = next(one for one in forecast(model, result).layers if one.name == "stage2.1").input
    largest = x.abs().amax((0, 2, 3))
    assert row.largest == pytest.approx(float(x.abs().max()), rel=1e-4)
    assert row.widest == int(largest.argmax())
    assert row.spread == pytest.approx(float(largest.max() / largest.median()), rel=1e-4)
    assert row.snr_db == pytest.approx(decibels(x, in_int8(x, x.abs().max()) - x), abs=0.05)
    assert row.made_by == ("stage2.0",)


def truth(model: nn.Module, fused: nn.Module, name: str, parts: tuple[str, ...] = ("weight", "input")) -> float:
    """The error of the logits with one layer alone in int8, tried out; the head, not folded, is the model's own."""
    batches, module = images(), model if name == "head.linear" else fused
    x = torch.cat(batches)
    module = copy.deepcopy(module)
    layer = module.get_submodule(name)
    with torch.no_grad():
        seen = []
        hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max()))
        want = module(x)
        hook.remove()
        if "weight" in parts:
            layer.weight.copy_(torch.stack([in_int8(channel, channel.abs().max()) for channel in layer.weight]))
        if "input" in parts:
            layer.register_forward_pre_hook(lambda _, args: (in_int8(args[0], seen[0]),))
        got = module(x)
    return float((got - want).square().mean() / want.var(correction=0))


def test_the_error_of_a_last_layer_is_exact():
    """Nothing comes after it, so the first order is all there is; and one logit needs no signs."""
    model, result = made(classes=1)
    row = forecast(model, result).layers[-1]
    assert row.name == "head.linear"
    for part in ("weight", "input"):
        assert getattr(row.logit_error, part) == pytest.approx(truth(model, result.module, row.name, (part,)), rel=0.01)
    both = truth(model, result.module, row.name)
    assert row.logit_error.both == pytest.approx(both, rel=0.05)


@pytest.mark.parametrize("norm", [None, "stage2.1.identity"])
def test_the_order_of_the_layers_is_the_one_of_trying_each(norm):
    model, result = made(norm)
    rows = forecast(model, result).layers
    told = torch.tensor([row.logit_error.both for row in rows])
    tried = torch.tensor([truth(model, result.module, row.name) for row in rows])
    ranks = torch.stack([told.argsort().argsort(), tried.argsort().argsort()]).double()
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.8
    assert float((told / tried).log().abs().max()) < math.log(2.5)


# Causes


@pytest.mark.parametrize("block", ["plain", "quantizable"])
def test_a_healthy_network_gives_no_alarm(block):
    told = forecast(*made(block=block))
    assert told.risks == ()
    assert max(row.logit_error.both for row in told.layers) < HURTS
    assert told.logit_error == pytest.approx(sum(row.logit_error.both for row in told.layers))


@pytest.mark.parametrize(
    ("norm", "reader"),
    [("stage2.1.identity", "stage2.2"), ("stage1.1.identity", "stage2.0")],
)
def test_a_wide_identity_is_named_and_nothing_else(norm, reader):
    (risk,) = forecast(*made(norm, by=200.0)).risks
    layer = norm.rpartition(".")[0]
    assert (risk.layer, risk.hurts, risk.cause) == (layer, reader, "identity")
    assert risk.logit_error > HURTS
    assert risk.message.startswith(f"Layer '{layer}' makes a channel that is far wider than the others, up to ")
    assert f"times the median channel, and int8 has one scale for all: of '{reader}', its input, " in risk.message
    assert f"The batch norm of its identity branch, '{norm}', has a gain of " in risk.message
    assert "Train with QARepVGG's block" in risk.message and "arXiv 2212.01593" in risk.message


def test_the_gain_that_is_told_is_the_batch_norms():
    model, result = made("stage2.1.identity")
    norm = model.get_submodule("stage2.1.identity")
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    (risk,) = forecast(model, result).risks
    channel = int(risk.message.split(" in channel ")[1].split()[0])
    assert channel % 8 == 0
    assert (
        f"has a gain of {float(gain[channel]):.3g} in channel {channel} ({float(gain.median()):.2g} in the"
        in risk.message
    )


def test_qarepvggs_blocks_do_better_on_the_same_table():
    """They have no batch norm on the identity that could be widened: the one after the sum takes its place."""
    sick, other = (
        forecast(*made("stage2.1.identity")),
        forecast(*made("stage2.1.bn", "quantizable")),
    )
    assert other.logit_error < sick.logit_error / 5
    assert "identity" not in {risk.cause for risk in other.risks}


def test_a_wide_gain_in_all_channels_alike_hurts_nobody():
    """Layer and logits live on the identity then, and it is kept well: no alarm, and trying it agrees."""
    model, result = made("stage2.1.identity", every=1)
    assert forecast(model, result).risks == ()
    assert truth(model, result.module, "stage2.2") < HURTS


def test_a_gain_is_named_by_its_batch_norm_and_a_dead_channel_is_told():
    """The same network, written with a variance that says that the channel was constant in training."""
    model = calibrated(small(), "stage2.1.dense.bn", by=400)
    (risk,) = forecast(model).risks
    assert (risk.layer, risk.hurts, risk.cause) == ("stage2.1", "stage2.2", "gain")
    assert "The batch norm 'stage2.1.dense.bn' multiplies channel " in risk.message
    assert "below eps" not in risk.message and "recalibrate_bn" not in risk.message and "equalizes" in risk.message
    norm = model.get_submodule("stage2.1.dense.bn")
    with torch.no_grad():
        norm.weight[::8] *= ((1e-9 + norm.eps) / (norm.running_var[::8] + norm.eps)).sqrt()
        norm.running_var[::8] = 1e-9
    (risk,) = forecast(model).risks
    assert (risk.layer, risk.hurts, risk.cause) == ("stage2.1", "stage2.2", "gain")
    assert "(its variance there is 1.0e-09, below eps, 1e-05)" in risk.message
    assert "`recalibrate_bn`" in risk.message and "QARepVGG" not in risk.message


@pytest.mark.parametrize(("without", "cause"), [(40.0, "identity"), (25.0, None), (None, None)])
def test_the_tap_is_to_blame_where_the_other_branches_lose_by_it(without, cause):
    model, result = made()
    region = next(one for one in result.report.regions if one.name == "stage2.1")
    found = causes.of_tap(model, region, 20.0, without)
    assert (found and found.cause) == cause
    if found:
        assert found.reason == (
            "Its identity branch, 'stage2.1.identity', stands on the kernel's centre and sets the scales: int8 leaves "
            "the other branches 20 dB, and 40 dB without the identity."
        )
        assert "QARepVGG" in found.remedy


def test_qarepvggs_block_is_no_remedy_for_itself():
    model, result = made(block="quantizable")
    region = next(one for one in result.report.regions if one.name == "stage2.1")
    found = causes.of_tap(model, region, 20.0, 40.0)
    assert "'stage2.1', stands on the kernel's centre" in found.reason and "QARepVGG" not in found.remedy


def test_branches_of_one_width_are_blamed_together():
    model, result = made()
    region = next(one for one in result.report.regions if one.name == "stage2.0")
    found = causes.of_channel(model, region, 3, result.module.get_submodule("stage2.0").weight, None)
    scales = [model.get_submodule(f"stage2.0.{name}.bn").weight[3].item() for name in ("dense", "pointwise")]
    assert found.cause == "branches"
    assert found.reason == (
        f"It adds up 2 batch norms, whose standard deviations in channel 3 are {scales[0]:.2g} of 'stage2.0.dense.bn', "
        f"{scales[1]:.2g} of 'stage2.0.pointwise.bn'."
    )


def test_the_worst_comes_first():
    model = small()
    for norm in ("stage1.1.identity", "stage2.1.identity"):
        model = calibrated(model, norm, by=200)
    risks = forecast(model).risks
    assert {"stage1.1", "stage2.1"} <= {risk.layer for risk in risks}
    assert [risk.logit_error for risk in risks] == sorted((risk.logit_error for risk in risks), reverse=True)


# What it takes, and what it gives


def test_without_images_there_are_figures_of_weights_alone():
    model, result = made("stage2.1.identity")
    told = repnets.forecast(model, result)
    assert (told.images, told.reason, told.logit_error, told.risks) == (0, "no image was given", None, ())
    assert all((row.input, row.logit_error) == (None, None) for row in told.layers)
    full = repnets.forecast(model, result, images())
    assert (full.images, full.reason) == (64, None)
    assert [row.weight for row in full.layers] == [row.weight for row in told.layers]


def test_logits_that_never_change_are_a_reason_and_no_error():
    model = calibrated(small())
    nn.init.zeros_(model.head.linear.weight)
    told = forecast(model)
    assert (told.images, told.reason, told.risks) == (0, "the logits are all the same", ())


def test_a_network_that_gives_classes_is_a_reason_and_no_error():
    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = calibrated(small())

        def forward(self, x):
            return self.net(x).argmax(1)

    told = forecast(Classes().eval())
    assert told.reason == "nothing that the network gives depends smoothly on its input"
    assert told.layers[0].weight.largest > 0


def test_it_is_json_and_the_same_each_time():
    model, result = made("stage2.1.identity")
    before = copy.deepcopy(model.state_dict())
    kept = copy.deepcopy(result.module.state_dict())
    once, again = (repnets.forecast(model, result, images()).to_dict() for _ in range(2))
    assert (
        json.loads(json.dumps(once, allow_nan=False)) == json.loads(json.dumps(again)) == json.loads(json.dumps(once))
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in result.module.state_dict().items())


def test_layers_that_were_not_folded_are_told_of_too(randomise):
    """Squeeze-and-excitation's have a bias and no batch norm; and two calls of one layer are one layer."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = blocks.RepVGGBlock(3, 16, use_se=True)
            self.again = nn.Conv2d(16, 16, 3, padding=1)
            self.tokens = nn.Linear(16, 4)

        def forward(self, x):
            x = self.again(self.again(self.block(x)).relu()).relu()
            return self.tokens(x.flatten(2).transpose(1, 2).relu()).mean(1)

    torch.manual_seed(0)
    told = forecast(randomise(Twice()))
    names = [row.name for row in told.layers]
    assert names[1:] == ["block.se.reduce", "block.se.expand", "again", "tokens"]
    assert all(row.logit_error.both > 0 for row in told.layers if "se" not in row.name)
    assert dict(zip(names, told.layers, strict=True))["block.se.reduce"].input.made_by == (names[0],)
    assert set(dict(zip(names, told.layers, strict=True))["again"].input.made_by) >= {names[0]}


def test_branches_and_identities_are_in_the_report(randomise):
    def branches(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
        region = repnets.fuse(randomise(model), torch.zeros(1, 8, SIZE, SIZE)).report.regions[0]
        return region.branches, region.identities

    assert branches(nn.Sequential(blocks.RepVGGBlock(8, 8))) == (
        ("0.dense.bn", "0.pointwise.bn", "0.identity"),
        ("0.identity",),
    )
    assert branches(nn.Sequential(blocks.RepVGGBlock(8, 16))) == (("0.dense.bn", "0.pointwise.bn"), ())
    assert branches(nn.Sequential(blocks.QARepVGGBlock(8, 8))) == (("0.dense.bn", "0.pointwise", "0"), ("0",))
    assert branches(nn.Sequential(blocks.ConvBN(8, 8, 3))) == (("0.bn",), ())


def test_a_write_in_place_that_stays_has_a_gradient():
    class Shift(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, :2, 1:] = x[:, :2, :-1]
            return y

    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Shift(), nn.Conv2d(8, 8, 3), nn.ReLU(), *head).eval()
    result = fused(model)
    assert result.module.graph.find_nodes(op="call_function", target=torch.ops.aten.copy.default)
    found = forecast(model, result)
    assert found.reason is None and len(found.layers) == 3
