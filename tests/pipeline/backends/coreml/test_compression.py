"""Weights stored as int8, int4 and palettes: converted, held against the network's own, and damaged."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.artifacts import digests
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.backends.coreml import backend, compression, packages
from pipeline.errors import GateError, InputError

SHAPE = (1, 3, 16, 16)
TARGETS = {"w8": "iOS16", "w8 of iOS18": "iOS18", "w4": "iOS18", "palette6": "iOS16", "palette6 of iOS18": "iOS18"}
LARGE = ("conv2d_1", "conv2d_2")  # 32 x 48 x 9 and 48 x 64 x 9 weights; the others have at most 2048


@pytest.fixture(scope="module")
def network():
    """A folded identity makes the weights of each channel lopsided; four channels are dead, or all but."""
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 32), (32, 48), (48, 64)):
        conv = nn.Conv2d(inputs, outputs, 3, 2, 1)
        with torch.no_grad():
            for channel in range(min(inputs, outputs)):
                conv.weight[channel, channel, 1, 1] += 1
            conv.weight[5:9] *= torch.tensor([1e-5, 1e-6, 1e-7, 0]).view(-1, 1, 1, 1)  # half precision ends at 6e-8
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.fixture(scope="module")
def own(network):
    """The network's weights by the layer's name."""
    convolutions = [one for one in network if isinstance(one, nn.Conv2d)]
    named = dict(zip(("conv2d", *LARGE), convolutions, strict=True)) | {"linear": network[-1]}
    return {name: layer.weight.detach().numpy() for name, layer in named.items()}


def spec_of(scheme):
    about = Preprocessing(16, (0.5,) * 3, (0.25,) * 3, tuple(f"class {index}" for index in range(10)))
    return ExportSpec(scheme.split()[0], SHAPE, about, {"minimum_deployment_target": TARGETS.get(scheme, "iOS16")})


@pytest.fixture(scope="module")
def export(network, tmp_path_factory):
    """Export the network by one of the schemes; each once."""
    program = torch.export.export(network, (torch.zeros(SHAPE),))
    made = {}

    def exported(scheme, again=False):
        if again or scheme not in made:
            made[scheme] = tmp_path_factory.mktemp("compressed") / "x.mlpackage"
            facts = backend.export(program, [made[scheme]], spec_of(scheme))
            left = ["conv2d", "conv2d_2", "linear"] if scheme == "w4" else ["conv2d", "linear"]
            assert scheme == "fp16" or facts["left_in_float16"] == left
        return made[scheme]

    return exported


def size(file):
    return (file / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


def relative(error, of):
    return float(np.abs(error).max() / np.abs(of).max())


@pytest.mark.parametrize("scheme", TARGETS)
def test_stored_weights_are_the_networks_as_the_scheme_rounds_them(export, own, scheme):
    stored = backend.stored_weights(export(scheme), spec_of(scheme).precision, own)
    assert stored.keys() == own.keys()
    for name, weights in own.items():
        error = relative(stored[name] - weights, weights)
        is_left = name not in LARGE or (scheme == "w4" and name == "conv2d_2")
        assert error < 2**-11 if is_left else 2**-11 < error < 0.05, name
    levels = {len(np.unique(row)) for name in LARGE for row in stored[name].reshape(len(stored[name]), -1)}
    assert max(levels) > 64 if scheme.startswith("w8") else True
    assert len(np.unique(stored["conv2d_1"])) == 64 or not scheme.startswith("palette6")


@pytest.mark.parametrize("scheme", TARGETS)
def test_the_file_is_the_network_with_those_weights(export, network, own, scheme):
    file, image = export(scheme), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    stored = backend.stored_weights(file, spec_of(scheme).precision, own)
    module = torch.export.export(copy.deepcopy(network), (image,)).module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
        for node in module.graph.nodes:
            if node.name in stored:
                module.get_parameter(node.args[1].target).copy_(torch.from_numpy(stored[node.name]))
        want, full = module(image).numpy(), network(image).numpy()
    assert relative(backend.open_exact_session(file, 1)(image.numpy())[0] - want, want) < 1e-5
    assert relative(want - full, full) > 1e-4, "nothing was rounded"
    assert 0 < relative(backend.open_check_session(file, 1)(image.numpy())[0] - want, want) < 5e-3


def test_size_falls_as_the_scheme_promises(export):
    plain = size(export("fp16"))
    large = {"conv2d_1": 32 * 48 * 9, "conv2d_2": 48 * 64 * 9}
    wanted = {
        "w8": sum(large.values()),
        "w8 of iOS18": sum(large.values()),
        "w4": (2 - 0.5 - 2.5 / 32) * large["conv2d_1"],
        "palette6": 1.25 * sum(large.values()),
        "palette6 of iOS18": 1.25 * sum(large.values()),
    }
    for scheme, saved in wanted.items():
        assert plain - size(export(scheme)) == pytest.approx(saved, abs=1500), scheme


def test_compressed_operations_are_what_the_target_knows(export):
    kinds = {"w8": "affine_dequantize", "w4": "blockwise_shift_scale", "palette6": "lut_to_dense"}
    kinds["w8 of iOS18"] = kinds["w4"]
    for scheme, kind in kinds.items():
        block, _ = packages.main_block(export(scheme), packages.read(export(scheme)))
        assert [one.type for one in block.operations if one.type.startswith("constexpr")] == [f"constexpr_{kind}"] * (
            1 if scheme == "w4" else 2
        )
        assert backend.census(export(scheme))["convolution"] == 3


@pytest.mark.parametrize("scheme", ["w8", "w4", "palette6"])
def test_the_same_program_gives_the_same_bytes_on_any_number_of_threads(export, scheme):
    from threadpoolctl import threadpool_limits

    once = digests.digest(export(scheme))
    with threadpool_limits(3):
        assert digests.digest(export(scheme, again=True)) == once


@pytest.mark.parametrize("scheme", TARGETS)
def test_weights_of_another_network_are_caught(export, own, scheme):
    """As if the file held another network: one weight that the scheme rounds by less is elsewhere."""
    other = {name: weights.copy() for name, weights in own.items()}
    other["conv2d_1"][7, 3, 1, 2] += 0.1
    with pytest.raises(GateError, match=r"the weight \[7, 3, 1, 2\] of the layer conv2d_1 is .* off by .* rounds by"):
        backend.stored_weights(export(scheme), spec_of(scheme).precision, other)


@pytest.mark.parametrize("scheme", TARGETS)
def test_a_changed_byte_of_the_stored_weights_is_caught(export, own, scheme, tmp_path):
    """The highest bit of one weight: int8 moves by 128 steps, int4 by 8, a palette's index by 32 places."""
    file = shutil.copytree(export(scheme), tmp_path / "x.mlpackage")
    path = file / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(path.read_bytes())
    package = packages.open_package(file)
    block, _ = packages.main_block(file, package.specification)
    (operation, *_) = [one for one in block.operations if one.type.startswith("constexpr")]
    given = {**operation.attributes}
    for name, argument in operation.inputs.items():
        given[name] = argument.arguments[0].value
    (name,) = {"quantized_data", "data", "indices"} & set(given)
    record = given[name].blobFileValue.offset
    start = int.from_bytes(content[record + 16 : record + 24], "little")
    content[start + 30] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(GateError, match=r"of the layer conv2d_1 is .* The file does not hold the network"):
        backend.stored_weights(file, spec_of(scheme).precision, own)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 30.0])
def test_a_palette_whose_numbers_are_rounded_to_half_is_held(size):
    """Which number is the nearest was found before these were rounded, and the middle between two has moved since."""
    own = np.random.default_rng(0).normal(0, size, (64, 400, 3, 3))
    entries = np.linspace(own.min(), own.max(), 64)
    halves = own.astype(np.float16).astype(np.float64)
    places = np.searchsorted((entries[1:] + entries[:-1]) / 2, halves)
    stored = entries.astype(np.float16).astype(np.float32)[places]
    nearest = np.abs(own[..., None] - np.unique(stored)).min(-1)
    assert (np.abs(stored - own) > nearest).any(), "no middle has moved, so nothing was tried"
    assert (np.abs(stored - own) <= compression._allowed(stored, own, "palette6")).all()


def test_a_coarse_palette_is_caught(own):
    """Each weight is the nearest of a few numbers, but these do not serve the layer."""
    weights = own["conv2d_1"].astype(np.float64)
    few = np.quantile(weights, [0.2, 0.8])
    stored = few[np.abs(weights[..., None] - few).argmin(-1)]
    assert (np.abs(stored - weights) > compression._allowed(stored, weights, "palette6")).any()


def test_a_layer_that_is_missing_or_of_another_shape_is_caught(export, own):
    more = {**own, "conv2d_9": own["conv2d"]}
    with pytest.raises(GateError, match="holds no weights for the layer conv2d_9, whose weights are of shape"):
        backend.stored_weights(export("w8"), "w8", more)
    other = {**own, "conv2d_1": own["conv2d"]}
    with pytest.raises(GateError, match=r"holds weights of shape \[48, 32, 3, 3\] for the layer conv2d_1"):
        backend.stored_weights(export("w8"), "w8", other)


def test_other_precisions_have_no_weights_to_tell(own, tmp_path):
    assert backend.stored_weights(tmp_path / "none.mlpackage", "fp16", own) == {}


@pytest.mark.parametrize(("precision", "target", "oldest"), [("w8", "iOS15", "iOS16"), ("w4", "iOS17", "iOS18"),
                                                             ("palette6", "iOS15", "iOS16")])  # fmt: skip
def test_a_target_too_old_for_the_scheme_is_refused(network, tmp_path, precision, target, oldest):
    program = torch.export.export(network, (torch.zeros(SHAPE),))
    spec = replace(spec_of(precision), options={"minimum_deployment_target": target})
    with pytest.raises(InputError, match=rf"`precision: {precision}` needs {oldest} or newer, but .* is {target}\."):
        backend.export(program, [tmp_path / "x.mlpackage"], spec)
    assert not (tmp_path / "x.mlpackage").exists()


def test_a_network_that_the_scheme_leaves_as_it_is_is_refused(tmp_path):
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    program = torch.export.export(small, (torch.zeros(SHAPE),))
    with pytest.raises(InputError, match=r"`precision: w8` compresses nothing .* of at most 2048 weights\. Set"):
        backend.export(program, [tmp_path / "x.mlpackage"], spec_of("w8"))


def test_layers_left_in_float16_are_named_in_the_log(network, tmp_path, capsys):
    backend.export(torch.export.export(network, (torch.zeros(SHAPE),)), [tmp_path / "x.mlpackage"], spec_of("w4"))
    assert "w4: 3 of 4 layers stay float16, of at most 2048 weights, or input channels in no blocks of 32: conv2d, " \
        "conv2d_2, linear" in capsys.readouterr().out  # fmt: skip
