"""The networks that are no classifiers: what they give, and how they fold."""

import pytest
import torch
from torch.nn import functional as F

import repnets
from repnets.networks import MODELS
from repnets.networks.superresolution import EdgeBlock
from repnets.outputs import named

# parameters with 5 classes, and convolutions before and after fusing
FIGURES = {
    "toy_segmenter": (339621, 19, 12),
    "repvgg_a0_segmenter": (8194693, 50, 27),
    "mobileone_s0_segmenter": (4614517, 197, 48),
    "toy_detector": (603019, 43, 32),
    "repdet_n": (4699931, 91, 56),
    "repdet_s": (18753051, 91, 56),
    "toy_x2": (27772, 36, 4),
    "ecbsr_m4c16_x2": (44604, 54, 6),
    "ecbsr_m4c16_x4": (92016, 54, 6),
    "plainsr_m4c16_x2": (11548, 6, 6),
    "toy_embedding": (257600, 6, 3),
    "repvgg_a0_embedding": (7992192, 44, 22),
}
SLOW = {"mobileone_s0_segmenter", "repdet_n", "repdet_s", "repvgg_a0_segmenter", "repvgg_a0_embedding"}


def made(name: str, in_channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return repnets.create_model(name, num_classes=5 if MODELS[name].has_classes else 0, in_channels=in_channels)


def expected(name: str, height: int, width: int, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Output shapes for two images."""
    match MODELS[name].task:
        case "segmentation":
            return {"": (2, 5, height, width)}
        case "restoration":
            factor = MODELS[name].settings["factor"]
            return {"": (2, channels, factor * height, factor * width)}
        case "embedding":
            return {"": (2, MODELS[name].settings["width"])}
    last = MODELS[name].size_step
    return {
        f"{what}_{stride}": (2, count, height // stride, width // stride)
        for stride in (last // 4, last // 2, last)
        for what, count in (("boxes", 4), ("classes", 5))
    }


def test_every_network_of_another_task_is_listed_once():
    assert [name for name, spec in MODELS.items() if spec.task != "classification"] == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_outputs_at_the_smallest_size_and_at_others(name, channels):
    spec = MODELS[name]
    with torch.device("meta"):
        model = made(name, channels).eval()
        for steps in ((0, 0), (1, 3)):
            height, width = (spec.min_image_size + step * spec.size_step for step in steps)
            given = named(model(torch.empty(2, channels, height, width)))
            found = {key: tuple(one.shape) for key, one in given.items()}
            assert found == expected(name, height, width, channels)
            assert list(found) == list(expected(name, height, width, channels))


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] if one in SLOW else []) for one in FIGURES]
)
def test_it_folds_exactly(name, randomise, relative_error):
    spec, (parameters, before, after) = MODELS[name], FIGURES[name]
    model = randomise(made(name)).double()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    height, width = (2 * spec.min_image_size + step * spec.size_step for step in (0, 1))
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    result = repnets.fuse(model, x)
    report = result.report
    assert (report.before.convolutions, report.after.convolutions, report.after.batch_norms) == (before, after, 0)
    with torch.no_grad():
        wanted, found = named(model(x)), named(result.module(x))
    assert list(found) == list(wanted)
    for output, tensor in wanted.items():
        assert relative_error(found[output], tensor) < 1e-9, output


@pytest.mark.parametrize(("name", "millions"), [("repdet_n", 4.3), ("repdet_s", 17.2)])
def test_detectors_are_as_large_as_the_papers(name, millions):
    """Fused, 80 classes, arXiv 2209.02976, table 1. The paper's enlarges by transposed convolutions of 2 x 2."""
    with torch.device("meta"):
        model = repnets.create_model(name, num_classes=80)
    folded = sum(one.numel() for key, one in model.named_parameters() if _stays(key))
    enlarging = sum(4 * layer[0].conv.out_channels ** 2 for layer in (model.neck.reduce1, model.neck.reduce2))
    assert round((folded + enlarging) / 1e6, 1) == millions


def _stays(key: str) -> bool:
    """Whether a parameter is there after fusing: of a block, its 3x3 convolution and a bias."""
    return "pointwise" not in key and "identity" not in key and not key.endswith("bn.weight")


def test_a_detector_begins_with_every_class_nearly_absent():
    model = made("toy_detector").eval()
    with torch.no_grad():
        found = model(torch.rand(2, 3, 64, 64))
    for stride in (4, 8, 16):
        assert found[f"classes_{stride}"].sigmoid().mean() < 0.02
        assert abs(F.softplus(found[f"boxes_{stride}"]).mean() - 1.31) < 0.3


@pytest.mark.parametrize("name", ["toy_embedding", "repvgg_a0_embedding"])
def test_an_embedding_has_length_one_and_that_of_nothing_is_nothing(name, randomise):
    model = randomise(made(name))
    with torch.no_grad():
        torch.testing.assert_close(model(torch.rand(3, 3, 32, 32)).norm(dim=1), torch.ones(3))
        model.head.bn.weight.zero_()
        model.head.bn.bias.zero_()
        assert not model(torch.rand(3, 3, 32, 32)).any()


def test_superresolution_begins_near_the_enlarged_picture_and_knows_where_each_pixel_lies():
    model = made("ecbsr_m4c16_x2").eval()
    x = torch.rand(1, 3, 6, 7)
    with torch.no_grad():
        for parameter in model.last.parameters():
            parameter.zero_()
        model.last.dense.bias.copy_(torch.arange(12.0))
        model.last.has_identity = False
        y = model(x)
    enlarged = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close((y - enlarged)[0, :, :2, :2].flatten(), torch.arange(12.0))


@pytest.mark.parametrize("channels", [(3, 8), (8, 8)])
def test_an_edge_block_is_the_papers(channels, relative_error):
    """ECBSR, equations 1 to 8: the map after a 1x1 convolution is padded by the convolution's bias."""
    torch.manual_seed(0)
    block = EdgeBlock(*channels).double()
    for edge in block.edges:
        torch.nn.init.normal_(edge.scale)
        torch.nn.init.normal_(edge.bias)
    x = torch.randn(2, channels[0], 5, 6, dtype=torch.float64)

    def framed(conv: torch.nn.Conv2d) -> torch.Tensor:
        inner = F.conv2d(x, conv.weight, conv.bias)
        whole = conv.bias.view(1, -1, 1, 1).expand(2, -1, 7, 8).clone()
        whole[:, :, 1:-1, 1:-1] = inner
        return whole

    masks = torch.tensor(
        [
            [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
            [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
            [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
        ],
        dtype=torch.float64,
    )
    with torch.no_grad():
        wanted = F.conv2d(x, block.dense.weight, block.dense.bias, padding=1)
        wanted += F.conv2d(framed(block.expand), block.squeeze.weight, block.squeeze.bias)
        for edge, mask in zip(block.edges, masks, strict=True):
            kernel = edge.scale[..., None] * mask
            wanted += F.conv2d(framed(edge.pointwise), kernel, edge.bias.flatten(), groups=channels[1])
        if channels[0] == channels[1]:
            wanted += x
        assert relative_error(block(x), wanted) < 1e-12
        result = repnets.fuse(block.eval(), x)
        assert (result.report.after.convolutions, result.report.after.operations) == (1, 1)
        assert relative_error(result.module(x), wanted) < 1e-12
