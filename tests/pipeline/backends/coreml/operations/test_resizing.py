import numpy as np
import pytest
import torch
from torch.nn import functional

X = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
T = torch.from_numpy(X)
SIZES = [(10, 14), (5, 7), (3, 4), (13, 9), (1, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bilinear_is_torchs_own(computed, same, size):
    height, width = (np.float32(wanted / old) for wanted, old in zip(size, X.shape[2:], strict=True))

    def build(mb, x):
        given = {"scale_factor_height": height, "scale_factor_width": width}
        resized = {"target_size_height": size[0], "target_size_width": size[1]}
        return [
            mb.upsample_bilinear(x=x, align_corners=True, **given),
            mb.upsample_bilinear(x=x, align_corners=False, **given),
            mb.resize_bilinear(x=x, sampling_mode="STRICT_ALIGN_CORNERS", **resized),
            mb.resize_bilinear(x=x, sampling_mode="UNALIGN_CORNERS", **resized),
            mb.resize(x=x, shape=[1, *size], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
        ]

    aligned = functional.interpolate(T, size, mode="bilinear", align_corners=True)
    centred = functional.interpolate(T, size, mode="bilinear", align_corners=False)
    for output, expected in zip(computed(build, X), (aligned, centred, aligned, centred, centred), strict=True):
        same(output, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nearest_is_torchs_own(computed, same, size):
    height, width = (np.float32(wanted / old) for wanted, old in zip(size, X.shape[2:], strict=True))
    outputs = computed(
        lambda mb, x: [
            mb.upsample_nearest_neighbor(x=x, scale_factor_height=height, scale_factor_width=width),
            mb.resize_nearest_neighbor(x=x, target_size_height=size[0], target_size_width=size[1]),
            mb.resize(x=x, shape=list(size), resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
        ],
        X,
    )
    for output in outputs:
        same(output, functional.interpolate(T, size, mode="nearest"))


@pytest.mark.parametrize(
    ("mode", "size", "places"),
    [
        ("DEFAULT", 5, [0, 0.4, 0.8, 1, 1]),
        ("STRICT_ALIGN_CORNERS", 5, [0, 0.25, 0.5, 0.75, 1]),
        ("ALIGN_CORNERS", 5, [0, 0.25, 0.5, 0.75, 1]),
        ("ALIGN_CORNERS", 1, [0.5]),
        ("STRICT_ALIGN_CORNERS", 1, [0]),
        ("UNALIGN_CORNERS", 5, [0, 0.1, 0.5, 0.9, 1]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("OFFSET_CORNERS", 2, [0.25, 0.75]),
    ],
)
def test_each_sampling_mode_reads_where_coremltools_says(computed, same, mode, size, places):
    """The examples of two pixels in the documentation of ``resize_bilinear``."""
    x = np.array([0, 1], np.float32).reshape(1, 1, 1, 2)
    (output,) = computed(
        lambda mb, x: mb.resize_bilinear(x=x, target_size_height=1, target_size_width=size, sampling_mode=mode), x
    )
    assert np.allclose(output.ravel(), places, atol=1e-6)


def test_a_size_of_zero_keeps_the_dimension(computed, same):
    (output,) = computed(
        lambda mb, x: mb.resize(x=x, shape=[0, 14], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"), X
    )
    same(output, functional.interpolate(T, (5, 14), mode="bilinear"))
