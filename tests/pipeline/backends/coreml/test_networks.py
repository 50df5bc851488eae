"""Whole networks: of this project, and of timm's families that fold, exported as the pipeline does it."""

import copy
import warnings

import numpy as np
import pytest
import torch

import repnets
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.backends.coreml import backend

CLASSES = 10
OURS = ("toy", "repvgg_a0", "mobileone_s0", "qarepvgg_a0", "repshufflenet_x0_5", "resnet18_dbb")
TIMM = (
    "fastvit_t8",
    "repvit_m1",
    "levit_128s",
    "mobilenetv3_small_050",
    "convnext_atto",
    "repghostnet_050",
    "mobilenetv4_conv_small",
    "hgnetv2_b0",
    "ese_vovnet19b_slim",
)
# Half precision has no 1/6, and coremltools stores such an attribute, of a hard sigmoid, in half too.
ATTRIBUTES_IN_HALF = {
    name: 2e-3 for name in ("mobilenetv3_small_050", "levit_128s", "repghostnet_050", "ese_vovnet19b_slim")
}
LARGEST_HALF = 65504


def build(name):
    torch.manual_seed(0)
    if name in TIMM:
        timm = pytest.importorskip("timm")
        model = timm.create_model(name, num_classes=CLASSES, exportable=True)
    else:
        model = repnets.create_model(name, num_classes=CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.abs().max() < 1e-4:  # a layer's scale that hides the layer
            torch.nn.init.uniform_(parameter, 0.3, 0.6)
    return model.eval()


def image_of(name):
    size = 224 if name.startswith("levit") else 64
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def export(network, image, precision, file):
    classes = tuple(f"class {index}" for index in range(CLASSES))
    about = Preprocessing(image.shape[-1], (0.5,) * 3, (0.25,) * 3, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # levit keeps a cache in a dictionary
        program = torch.export.export(network, (image,))
    backend.export(program, [file], ExportSpec(precision, tuple(image.shape), about))


def worst(given, expected):
    assert given.shape == expected.shape == (1, CLASSES)
    return np.abs(given - expected.numpy()).max() / np.abs(expected.numpy()).max()


# The float16 file of each is evaluated in float32 too, below, so that this one adds little for timm's.
@pytest.mark.slow
@pytest.mark.parametrize("name", [*OURS, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in TIMM)])
@torch.no_grad()
def test_a_float32_file_is_the_network(tmp_path, name):
    network, image = build(name), image_of(name)
    export(network, image, "fp32", tmp_path / "x.mlpackage")
    given = backend.open_exact_session(tmp_path / "x.mlpackage", 1)(image.numpy())[0]
    assert worst(given, network(image)) < 1e-5
    assert np.array_equal(backend.open_check_session(tmp_path / "x.mlpackage", 1)(image.numpy())[0], given)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OURS, *TIMM])
@torch.no_grad()
def test_a_fused_float16_file_is_the_network_with_rounded_weights(tmp_path, name):
    """Fused by this project's engine, so coremltools finds no batch norm to fold in an order of its own."""
    image = image_of(name)
    fused = repnets.fuse(build(name), image).module
    export(fused, image, "fp16", tmp_path / "x.mlpackage")
    rounded = copy.deepcopy(fused)
    for tensor in (*rounded.parameters(), *rounded.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().float()
    half = image.half().float()
    given = backend.open_exact_session(tmp_path / "x.mlpackage", 1)(half.numpy())[0]
    assert worst(given, rounded(half)) < ATTRIBUTES_IN_HALF.get(name, 1e-5)
    own = backend.open_check_session(tmp_path / "x.mlpackage", 1)(image.numpy())[0]
    layers = backend.outputs_by_layer(tmp_path / "x.mlpackage", image.numpy(), exact=True)
    if max(np.abs(layer).max() for layer in layers.values()) < LARGEST_HALF:
        assert 0 < worst(own, fused(image)) < 0.05
    else:  # statistics at random make some networks overflow
        assert not np.isfinite(own).all()
