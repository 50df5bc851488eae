import numpy as np
import pytest
import torch
from torch.nn import functional

X = np.random.default_rng(0).normal(size=(2, 8, 4, 6)).astype(np.float32)
T = torch.from_numpy(X)


def test_shapes_of_the_same_numbers(computed, same):
    def build(mb, x):
        return [
            mb.reshape(x=x, shape=[4, -1, 6]),
            mb.reshape(x=x, shape=[0, 4, 8, 0]),
            mb.expand_dims(x=mb.reduce_max(x=x, axes=[3]), axes=[1, -1]),
            mb.squeeze(x=mb.reduce_max(x=x, axes=[1, 3], keep_dims=True), axes=[1]),
            mb.squeeze(x=mb.reduce_max(x=x, axes=[1, 3], keep_dims=True)),
            mb.transpose(x=x, perm=[2, 0, -1, 1]),
            mb.flatten2d(x=x, axis=2),
            mb.flatten2d(x=x, axis=-1),
            mb.reverse(x=x, axes=[1, -1]),
            mb.reverse(x=x),
            mb.tile(x=x, reps=[1, 2, 1, 3]),
            mb.sliding_windows(x=x, axis=-1, size=3, stride=2),
        ]

    expected = [
        T.reshape(4, -1, 6),
        T.reshape(2, 4, 8, 6),
        T.amax(3)[:, None, :, :, None],
        T.amax((1, 3))[..., None],
        T.amax((1, 3)),
        T.permute(2, 0, 3, 1),
        T.reshape(16, 24),
        T.reshape(64, 6),
        T.flip(1, 3),
        T.flip(0, 1, 2, 3),
        T.repeat(1, 2, 1, 3),
        T.unfold(3, 3, 2).transpose(-1, -2)[..., :3, :],
    ]
    expected[-1] = torch.stack([T[..., 0:3], T[..., 2:5]], -2)
    for output, wanted in zip(computed(build, X), expected, strict=True):
        same(output, wanted)


def test_joining_and_parting(computed, same):
    y = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    t = torch.from_numpy(y)

    def build(mb, x, y):
        return [
            mb.concat(values=[x, y, x], axis=1),
            mb.concat(values=[x, y], axis=-2, interleave=True),
            mb.concat(values=[x], axis=0),
            mb.stack(values=[x, y], axis=-1),
            *mb.split(x=x, num_splits=2, axis=1),
            *mb.split(x=x, split_sizes=[1, 2, 3], axis=-1),
        ]

    expected = [
        torch.cat([T, t, T], 1),
        torch.stack([T, t], 3).reshape(2, 8, 8, 6),
        T,
        torch.stack([T, t], -1),
        *T.chunk(2, 1),
        *T.split([1, 2, 3], -1),
    ]
    for output, wanted in zip(computed(build, X, y), expected, strict=True):
        same(output, wanted)


@pytest.mark.parametrize("pads", [[1, 2], [0, 3, 2, 1], [2, 0, 0, 1, 1, 3]], ids=str)
def test_padding(computed, same, pads):
    turned = [amount for pair in reversed(list(zip(pads[::2], pads[1::2], strict=True))) for amount in pair]
    modes = ("constant", "reflect", "replicate")
    outputs = computed(
        lambda mb, x: [mb.pad(x=x, pad=pads, mode=mode, constant_val=np.float32(1.5)) for mode in modes], X
    )
    volume = {2: T.flatten(0, 1), 4: T, 6: T[:, None]}[len(pads)]  # of the ranks that torch pads so
    expected = [functional.pad(T, turned, value=1.5)]
    expected += [functional.pad(volume, turned, mode).reshape(expected[0].shape) for mode in modes[1:]]
    for output, wanted in zip(outputs, expected, strict=True):
        same(output, wanted)


def test_between_depth_and_space(computed, same):
    def build(mb, x):
        return [
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
            mb.depth_to_space(x=x, block_size=2),
            mb.space_to_depth(x=x, block_size=2),
            mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        ]

    deep = torch.cat([T[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], 1)
    spread = torch.empty(2, 2, 8, 12)
    for index, part in enumerate(T.chunk(4, 1)):
        spread[..., index // 2 :: 2, index % 2 :: 2] = part
    expected = [functional.pixel_shuffle(T, 2), functional.pixel_unshuffle(T, 2), spread, deep, T[..., 1:-2, :-3]]
    for output, wanted in zip(computed(build, X), expected, strict=True):
        same(output, wanted)


def test_numbers_made_from_shapes(computed):
    def build(mb, x):
        shape = mb.shape(x=x)
        tail = mb.slice_by_index(x=shape, begin=[2], end=[4])
        return [
            shape,
            mb.fill(shape=tail, value=np.float32(2.5)),
            mb.fill(shape=tail),
            mb.fill_like(ref_tensor=x, value=np.int32(3)),
            mb.range_1d(
                start=np.int32(1), end=mb.squeeze(x=mb.slice_by_size(x=shape, begin=[1], size=[1])), step=np.int32(3)
            ),
            mb.reshape(x=x, shape=mb.concat(values=[tail, np.array([-1], np.int32)], axis=0)),
        ]

    shape, filled, zeros, alike, numbers, reshaped = computed(build, X)
    assert (str(shape.dtype), shape.tolist()) == ("int32", [2, 8, 4, 6])
    assert np.array_equal(filled, np.full((4, 6), 2.5, np.float32)) and np.array_equal(zeros, np.zeros((4, 6)))
    assert alike.shape == X.shape and alike.dtype == np.int32 and (alike == 3).all()
    assert numbers.tolist() == [1, 4, 7]
    assert np.array_equal(reshaped, X.reshape(4, 6, -1))
