"""What coremltools compresses, against what coremltools itself makes of it, decompressed."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.backends.coreml import evaluator
from pipeline.backends.coreml.operations import OPERATIONS
from pipeline.backends.coreml.packages import census
from pipeline.quiet import quiet

X = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(8, 32, 3, padding=1)
        self.grouped = torch.nn.Conv2d(32, 32, 3, groups=4)
        self.last = torch.nn.Linear(32, 64)

    def forward(self, x):
        return self.last(self.grouped(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def models():
    """The network as a model of coremltools, for each target."""
    network, found = Network().eval(), {}
    with quiet():
        import coremltools

        program = torch.export.export(network, (torch.from_numpy(X),)).run_decompositions({})
        for target in ("iOS16", "iOS18"):
            for precision in ("FLOAT16", "FLOAT32"):
                found[target, precision] = coremltools.convert(
                    program,
                    minimum_deployment_target=getattr(coremltools.target, target),
                    compute_precision=getattr(coremltools.precision, precision),
                    inputs=[coremltools.TensorType("image", X.shape)],
                    outputs=[coremltools.TensorType("logits", dtype=np.float32)],
                    skip_model_load=True,
                )
    return found


def quantized(**options):
    return "linear_quantize_weights", "OpLinearQuantizerConfig", {"weight_threshold": 0, **options}


def palettized(**options):
    return "palettize_weights", "OpPalettizerConfig", {"weight_threshold": 0, **options}


def pruned(kind="OpMagnitudePrunerConfig", **options):
    return "prune_weights", kind, {"weight_threshold": 0, **options}


SPARSE, JOINTLY = pruned(target_sparsity=0.6), {"joint_compression": True}
AFFINE, BLOCKWISE = "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"
LUT, DENSE = "constexpr_lut_to_dense", "constexpr_sparse_to_dense"
SCHEMES = {
    "int8": ("iOS16", [quantized(mode="linear_symmetric")], AFFINE),
    "int8 asymmetric": ("iOS16", [quantized(mode="linear")], AFFINE),
    "uint8 per tensor": ("iOS16", [quantized(mode="linear", dtype="uint8", granularity="per_tensor")], AFFINE),
    "int8 iOS18": ("iOS18", [quantized(mode="linear_symmetric")], BLOCKWISE),
    "uint8 iOS18": ("iOS18", [quantized(mode="linear", dtype="uint8")], BLOCKWISE),
    "int4 in blocks": ("iOS18", [quantized(dtype="int4", granularity="per_block", block_size=4)], BLOCKWISE),
    "uint4": ("iOS18", [quantized(mode="linear", dtype="uint4", granularity="per_channel")], BLOCKWISE),
    **{f"{bits} bits": ("iOS16", [palettized(nbits=bits)], LUT) for bits in (1, 2, 4, 6, 8)},
    **{f"{bits} bits uniform": ("iOS16", [palettized(mode="uniform", nbits=bits)], LUT) for bits in (2, 6)},
    **{f"{bits} bits iOS18": ("iOS18", [palettized(nbits=bits)], LUT) for bits in (1, 2, 3, 4, 6, 8)},
    "grouped channels": (
        "iOS18",
        [palettized(nbits=4, granularity="per_grouped_channel", group_size=8)],
        LUT,
    ),
    "scaled by channel": (
        "iOS18",
        [palettized(nbits=4, granularity="per_grouped_channel", group_size=8, enable_per_channel_scale=True)],
        BLOCKWISE,
    ),
    "vectors": ("iOS18", [palettized(nbits=2, cluster_dim=4)], LUT),
    "sparse": ("iOS16", [SPARSE], DENSE),
    "sparse iOS18": ("iOS18", [SPARSE], DENSE),
    "by threshold": ("iOS16", [pruned("OpThresholdPrunerConfig", threshold=0.08)], DENSE),
    "sparse and palettized": ("iOS18", [SPARSE, (*palettized(nbits=4), JOINTLY)], "constexpr_lut_to_sparse"),
    "sparse and quantized": (
        "iOS18",
        [SPARSE, (*quantized(mode="linear_symmetric"), JOINTLY)],
        "constexpr_sparse_blockwise_shift_scale",
    ),
    "palettized and quantized": (
        "iOS18",
        [palettized(nbits=4), (*quantized(mode="linear_symmetric", granularity="per_tensor"), JOINTLY)],
        BLOCKWISE,
    ),
}


def compressed(model, steps):
    with quiet():
        from coremltools.optimize import coreml as optimize

        for name, config, options, *more in steps:
            settings = optimize.OptimizationConfig(getattr(optimize, config)(**options))
            model = getattr(optimize, name)(model, settings, **dict(*more))
    return model


def save(model, folder, name):
    with quiet():
        model.save(str(folder / f"{name}.mlpackage"))
    return folder / f"{name}.mlpackage"


def logits(file):
    program = evaluator.load(file, exact=False)  # coremltools decompresses a FLOAT16 weight in half precision
    return evaluator.run(program, {"image": X})["logits"]


@pytest.mark.parametrize("precision", ["FLOAT32", "FLOAT16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_weights(models, tmp_path, scheme, precision):
    target, steps, operation = SCHEMES[scheme]
    model = compressed(models[target, precision], steps)
    file = save(model, tmp_path, "compressed")
    kinds = {
        one.type for one in model.get_spec().mlProgram.functions["main"].block_specializations.popitem()[1].operations
    }
    assert operation in kinds

    with quiet():
        from coremltools.optimize import coreml as optimize

        plain = save(optimize.decompress_weights(model), tmp_path, "plain")
    assert not [kind for kind in census(plain) if kind.startswith("constexpr_")]
    expected, given = logits(plain), logits(file)
    assert np.abs(given - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(given - logits(save(models[target, precision], tmp_path, "whole"))).max() > 0


def quantizer():
    """int8 weights by channel and int8 activations, symmetric: a scheme that every target can run."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.observer import HistogramObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    activations = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
    )
    settings = get_symmetric_quantization_config(is_per_channel=True)
    settings = dataclasses.replace(settings, input_activation=activations, output_activation=activations)
    return XNNPACKQuantizer().set_global(settings)


@pytest.mark.slow
def test_quantized_activations(tmp_path):
    """The program of int8 weights and activations that goes to every target, quantized by PT2E."""
    image = torch.from_numpy(X)
    with quiet():
        import coremltools
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        prepared = prepare_pt2e(torch.export.export(Network().eval(), (image,)).module(), quantizer())
        for seed in range(4):
            prepared(torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)))
        network = convert_pt2e(prepared)
        program = torch.export.export(network, (image,)).run_decompositions({})
        model = coremltools.convert(
            program,
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=coremltools.precision.FLOAT32,
            inputs=[coremltools.TensorType("image", X.shape)],
            outputs=[coremltools.TensorType("logits", dtype=np.float32)],
            skip_model_load=True,
        )
        file = save(model, tmp_path, "quantized")
    operations = census(file)
    assert operations["quantize"] >= 4 and operations["dequantize"] >= 4
    expected = network(image).detach().numpy()
    assert np.abs(logits(file) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_quantizing_and_back(computed, axis, kind):
    """Along an axis and not; rounded to even, kept within the type's range, about a zero point."""
    x = np.array([[0.5, 1.5, -0.5, 400], [-400, 3.3, -3.3, 0.0]], np.float32)
    generator = np.random.default_rng(3)
    size = () if axis is None else x.shape[axis]
    scale = generator.choice(np.array([0.5, 1, 2], np.float32), size)
    zero = generator.integers(0, 5, size).astype(kind)

    def build(mb, x):
        given = {"scale": scale, "zero_point": zero} | ({} if axis is None else {"axis": axis})
        whole = mb.quantize(input=x, output_dtype=kind, **given)
        plain = mb.quantize(input=x, output_dtype="int8", scale=np.float32(2))
        backs = [mb.dequantize(input=whole, **given), mb.dequantize(input=plain, scale=np.float32(2))]
        return [mb.cast(x=whole, dtype="int32"), mb.cast(x=plain, dtype="int32"), *backs]

    shape = {None: (), 0: (2, 1), 1: (4,), -1: (4,)}[axis]
    s, z = scale.reshape(shape), zero.reshape(shape).astype(np.int32)
    limits = np.iinfo(kind)
    expected = np.clip(np.round(x / s) + z, limits.min, limits.max)
    plain = np.clip(np.round(x / 2), -128, 127)
    whole, half, back, half_back = computed(build, x)
    assert np.array_equal(whole, expected) and np.array_equal(half, plain)
    assert np.allclose(back, (expected - z) * s) and np.array_equal(half_back, plain * 2)


def test_vectors_of_sparse_weights():
    """The example in the documentation of ``constexpr_lut_to_sparse``; coremltools' own joint compression fails."""
    rows = ["110000", "110001", "011010", "000100"]
    mask = torch.tensor([[int(bit) for bit in row] for row in rows], dtype=torch.uint8)
    places = torch.tensor([0, 1, 1, 0, 1, 1, 0, 0, 1], dtype=torch.uint8)
    lut = torch.tensor([[2.0, 2.5], [3.0, 3.5]]).reshape(1, 1, 2, 2)
    wide, values = OPERATIONS["constexpr_lut_to_sparse"](mask, places, lut, 0)
    assert torch.equal(wide, mask.repeat_interleave(2, 0))
    dense = OPERATIONS["constexpr_sparse_to_dense"](values, wide)
    single = torch.zeros(4, 6)
    single[mask.bool()] = places.float() + 2
    assert torch.equal(dense[::2], single) and torch.equal(dense[1::2], (single + 0.5) * mask)
