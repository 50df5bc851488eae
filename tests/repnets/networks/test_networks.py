import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import repnets
from repnets.networks import MODELS
from tests.fixtures.kinds import in_ci


class Figures(NamedTuple):
    """Of a classifier at 1000 classes. GMAC: convolutions and linear layers at 224 x 224, to the digits known."""

    parameters: int
    tensors: int  # in the state dict
    fused_parameters: int
    fused_tensors: int
    fused_gmac: str


FIGURES = {
    # of the official definitions
    "repvgg_a0": Figures(9108968, 351, 8309384, 46, "1.361"),
    "repvgg_a1": Figures(14092264, 351, 12789864, 46, "2.364"),
    "repvgg_a2": Figures(28210600, 351, 25499944, 46, "5.117"),
    "repvgg_b0": Figures(15817960, 453, 14339048, 58, "3.058"),
    "repvgg_b1": Figures(57415016, 453, 51829480, 58, "11.815"),
    "repvgg_b1g2": Figures(45782376, 453, 41360104, 58, "8.810"),
    "repvgg_b1g4": Figures(39966056, 453, 36125416, 58, "7.307"),
    "repvgg_b2": Figures(89022376, 453, 80315112, 58, "18.377"),
    "repvgg_b2g2": Figures(70846376, 453, 63956712, 58, "13.680"),
    "repvgg_b2g4": Figures(61758376, 453, 55777512, 58, "11.332"),
    "repvgg_b3": Figures(123085288, 453, 110960872, 58, "26.209"),
    "repvgg_b3g2": Figures(96911848, 453, 87404776, 58, "19.446"),
    "repvgg_b3g4": Figures(83825128, 453, 75626728, 58, "16.064"),
    "repvgg_d2se": Figures(133334836, 985, 120387572, 290, "32.830"),
    # fused, what RepVGG of that size is
    "qarepvgg_a0": Figures(9103304, 266, 8309384, 46, "1.361"),
    "qarepvgg_b0": Figures(15808616, 338, 14339048, 58, "3.058"),
    # of the official definitions
    "mobileone_s0": Figures(5293272, 1323, 2078504, 88, "0.2751"),
    "mobileone_s1": Figures(4825192, 562, 4764840, 88, "0.8251"),
    "mobileone_s2": Figures(7884648, 562, 7808168, 88, "1.2984"),
    "mobileone_s3": Figures(10170600, 562, 10078312, 88, "1.8958"),
    "mobileone_s4": Figures(14951248, 610, 14838352, 136, "2.9793"),
    # derived below from ShuffleNetV2's table
    "repshufflenet_x0_5": Figures(1926832, 307, 1851600, 44, "0.096"),
    "repshufflenet_x1_0": Figures(5547220, 307, 5132226, 44, "0.456"),
    # ResNet-18 has 11689512 parameters; what the branches add is derived below
    "resnet18": Figures(11689512, 122, 11684712, 42, "1.814"),
    "resnet18_acb": Figures(19028520, 314, 11684712, 42, "1.814"),
    "resnet18_dbb": Figures(26288296, 586, 11684712, 42, "1.814"),
}


def test_every_network_is_listed_once():
    assert [name for name in repnets.list_models() if MODELS[name].task == "classification"] == ["toy", *FIGURES]
    assert all(name == spec.name for name, spec in MODELS.items())


@pytest.mark.parametrize("name", FIGURES)
def test_parameters_and_tensors_in_training_form(name):
    with torch.device("meta"):
        model = repnets.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == FIGURES[name].parameters
    assert len(model.state_dict()) == FIGURES[name].tensors


@pytest.mark.parametrize(("name", "identities"), [("a0", {48: 1, 96: 3, 192: 13}), ("b0", {64: 3, 128: 5, 256: 15})])
def test_qarepvgg_has_one_batch_norm_less_than_repvgg_in_each_block_with_an_identity(name, identities):
    theirs, ours = FIGURES[f"repvgg_{name}"], FIGURES[f"qarepvgg_{name}"]
    assert theirs.parameters - ours.parameters == sum(2 * width * blocks for width, blocks in identities.items())
    assert theirs[2:] == ours[2:]


@pytest.mark.parametrize(("size", "stages"), [("x0_5", (48, 96, 192)), ("x1_0", (116, 232, 464))])
def test_repshufflenets_parameters_follow_from_its_table(size, stages):
    convolutions = [(3, 24, 9), (stages[-1], 1024, 1)]  # channels in and out, taps
    dense = []
    identities = []
    for units, channels, width in zip((4, 8, 4), (24, *stages[:-1]), stages, strict=True):
        half = width // 2
        dense += [(channels, half, 9)] * 2 + [(half, half, 9)] * (units - 1)
        identities += [half] * (units - 1)
    pointwise = [(wide_in, wide_out, 1) for wide_in, wide_out, _ in dense]
    branches = [*convolutions, *dense, *pointwise]
    weights = sum(wide_in * wide_out * taps for wide_in, wide_out, taps in branches)
    channels = sum(wide_out for _, wide_out, _ in branches) + sum(identities)
    figures = FIGURES[f"repshufflenet_{size}"]
    assert figures.parameters == weights + 2 * channels + 1025 * 1000
    fused = [*convolutions, *dense]
    biased = sum((wide_in * taps + 1) * wide_out for wide_in, wide_out, taps in fused)
    assert figures.fused_parameters == biased + 1025 * 1000


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("resnet18", lambda wide_in, wide_out: 0),
        # 1x3 and 3x1, each with a batch norm
        ("resnet18_acb", lambda wide_in, wide_out: 2 * (3 * wide_in * wide_out + 2 * wide_out)),
        (
            "resnet18_dbb",
            lambda wide_in, wide_out: (
                (wide_in * wide_out + 2 * wide_out)  # 1x1
                + (wide_in * wide_in + 2 * wide_in + 9 * wide_in * wide_out + 2 * wide_out)  # 1x1, 3x3
                + (wide_in * wide_out + 2 * wide_out + 2 * wide_out)  # 1x1, average
            ),
        ),
    ],
)
def test_what_branches_add_to_resnet18(name, added):
    dense = [(64, 64)] * 4
    for wide_in, wide_out in ((64, 128), (128, 256), (256, 512)):
        dense += [(wide_in, wide_out)] + [(wide_out, wide_out)] * 3
    assert FIGURES[name].parameters == 11689512 + sum(added(*channels) for channels in dense)
    # fused, 64 channels of the stem, those of the 3x3 and of the three shortcuts have a bias for a batch norm
    channels = 64 + sum(wide_out for _, wide_out in dense) + 128 + 256 + 512
    assert FIGURES[name].fused_parameters == 11689512 - channels


@pytest.mark.parametrize(
    "name",
    [
        *("toy", "repvgg_b1g4", "repvgg_d2se", "qarepvgg_a0", "mobileone_s0", "mobileone_s4"),
        *("repshufflenet_x0_5", "repshufflenet_x1_0", "resnet18_acb", "resnet18_dbb"),
    ],
)
def test_the_smallest_image_reaches_every_stage(name):
    size = MODELS[name].min_image_size
    with torch.device("meta"):
        model = repnets.create_model(name, num_classes=7).eval()
        features = torch.nn.Sequential(*list(model)[:-1])(torch.empty(2, 3, size, size))
        assert features.shape[2:] == (1, 1)
        assert model(torch.empty(2, 3, size + 5, size)).shape == (2, 7)


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_ci(name)) for name in FIGURES])
def test_parameters_tensors_and_cost_of_the_fused_network(randomise, name):
    figures = FIGURES[name]
    torch.manual_seed(0)
    model = randomise(repnets.create_model(name))
    result = repnets.fuse(model, torch.zeros(1, 3, 64, 64))
    report, module = result.report, result.module
    assert (report.before.parameters, report.after.parameters) == (figures.parameters, figures.fused_parameters)
    assert sum(parameter.numel() for parameter in module.parameters()) == figures.fused_parameters
    assert len(module.state_dict()) == figures.fused_tensors
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(torch.empty(1, 3, 224, 224, device="meta"))
    digits = len(figures.fused_gmac.partition(".")[2])
    assert f"{counter.get_total_flops() / 2e9:.{digits}f}" == figures.fused_gmac
    # the shortcuts of ResNet's eight blocks are the only sums that stay
    assert (report.after.batch_norms, report.after.additions) == (0, 8 if name.startswith("resnet") else 0)
    assert max(region.error_float64 for region in report.regions) < 1e-13
    assert max(region.error_float32 for region in report.regions) < 1e-5


def test_the_residual_of_a_diverse_branch_begins_at_zero_in_a_network_too():
    model = repnets.create_model("resnet18_dbb", num_classes=2)
    residuals = [parameter for name, parameter in model.named_parameters() if name.endswith(".residual")]
    assert len(residuals) == 16
    assert not any(residual.any() for residual in residuals)


@pytest.mark.parametrize("name", ["repshufflenet_x0_5", "repshufflenet_x1_0"])
def test_a_unit_passes_one_half_by_and_interleaves_the_halves(randomise, name):
    unit = randomise(repnets.create_model(name).stage2[1])
    width = MODELS[name].settings["widths"][1]
    x = torch.randn(2, width, 5, 6)
    with torch.no_grad():
        y = unit(x)
        assert y.shape == x.shape
        assert torch.equal(y[:, 0::2], x[:, : width // 2])
        assert torch.equal(y[:, 1::2], unit.block(x[:, width // 2 :]))


@pytest.mark.parametrize("place", [0, 1])
def test_a_basic_block_adds_its_shortcut_before_the_relu(randomise, place):
    block = randomise(repnets.create_model("resnet18").stage2[place])
    x = torch.randn(2, 64 if place == 0 else 128, 6, 8)
    with torch.no_grad():
        y = block(x)
        shortcut = block.shortcut(x) if place == 0 else x
        assert y.shape == shortcut.shape == (2, 128, *((3, 4) if place == 0 else (6, 8)))
        torch.testing.assert_close(y, (block.second(block.first(x).clamp(min=0)) + shortcut).clamp(min=0))


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(repnets.RepnetsError, match=r"no network 'repvgg-a0'. Did you mean 'repvgg_a0'\?.*list_models"):
        repnets.create_model("repvgg-a0")
    with pytest.raises(repnets.RepnetsError, match=r"no network 'zzz'. repnets.list_models"):
        repnets.create_model("zzz")


@pytest.mark.parametrize("name", ["toy", "toy_segmenter", "toy_detector"])
def test_a_network_without_the_classes_that_it_needs_is_refused(name):
    with pytest.raises(repnets.RepnetsError, match=f"{name} needs at least one class, and num_classes is 0"):
        repnets.create_model(name, num_classes=0)


def test_listing_networks_imports_no_torch():
    code = "import sys, repnets, repnets.networks; repnets.list_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_public_face():
    for name in repnets.__all__:
        assert getattr(repnets, name).__name__ == name
    assert set(repnets.__all__) <= set(dir(repnets))
    with pytest.raises(AttributeError, match="no attribute 'unfuse'"):
        _ = repnets.unfuse
