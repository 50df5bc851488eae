import numpy as np
import pytest
import torch

REDUCTIONS = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.exp().sum(axes, keep).log(),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keep),
    "reduce_prod": lambda x, axes, keep: x.log().sum(axes, keep).exp(),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [[0], [-1], [1, 3], [-2, 0, 1]], ids=str)
def test_reductions_over_axes(computed, same, axes, keep):
    x = np.random.default_rng(0).uniform(0.5, 1.5, (2, 3, 4, 5)).astype(np.float32)
    outputs = computed(lambda mb, x: [getattr(mb, name)(x=x, axes=axes, keep_dims=keep) for name in REDUCTIONS], x)
    for output, expected in zip(outputs, REDUCTIONS.values(), strict=True):
        same(output, expected(torch.from_numpy(x), axes, keep))


def test_no_axes_are_all_axes(computed, same):
    x = np.random.default_rng(1).uniform(0.5, 1.5, (2, 3)).astype(np.float32)
    outputs = computed(lambda mb, x: [getattr(mb, name)(x=x, keep_dims=True) for name in REDUCTIONS], x)
    for output, expected in zip(outputs, REDUCTIONS.values(), strict=True):
        same(output, expected(torch.from_numpy(x), [0, 1], True))


def test_whole_numbers_stay_whole(computed):
    x = np.array([[1, -2, 3], [4, 5, -6]], np.int32)
    names = ("reduce_sum", "reduce_prod", "reduce_max", "reduce_l1_norm", "reduce_sum_square")
    outputs = computed(lambda mb, x: [getattr(mb, name)(x=x, axes=[1]) for name in names], x)
    assert [one.tolist() for one in outputs] == [[2, 3], [-6, -120], [3, 5], [6, 15], [14, 77]]
    assert {str(one.dtype) for one in outputs} == {"int32"}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_places_of_the_largest_and_the_least(computed, axis):
    x = np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32)
    largest, least, kept, falling, rising = computed(
        lambda mb, x: [
            mb.reduce_argmax(x=x, axis=axis),
            mb.reduce_argmin(x=x, axis=axis),
            mb.reduce_argmax(x=x, axis=axis, keep_dims=True),
            mb.argsort(x=x, axis=axis),
            mb.argsort(x=x, axis=axis, ascending=True),
        ],
        x,
    )
    assert np.array_equal(largest, x.argmax(axis)) and np.array_equal(least, x.argmin(axis))
    assert np.array_equal(kept, np.expand_dims(x.argmax(axis), axis))
    assert np.array_equal(falling, (-x).argsort(axis)) and np.array_equal(rising, x.argsort(axis))
    assert largest.dtype == falling.dtype == np.int32


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [0, -1])
def test_topk(computed, ascending, axis):
    x = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)
    values, places = computed(lambda mb, x: mb.topk(x=x, k=3, axis=axis, ascending=ascending), x)
    expected = np.take(x.argsort(axis) if ascending else (-x).argsort(axis), range(3), axis)
    assert np.array_equal(places, expected)
    assert np.array_equal(values, np.take_along_axis(x, expected, axis))
    (alone,) = computed(
        lambda mb, x: mb.topk(x=x, k=3, axis=axis, ascending=ascending, return_indices=False), x, name="alone"
    )
    assert np.array_equal(alone, values)


def test_running_totals(computed):
    x = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    kinds = [{}, {"axis": 1}, {"axis": 1, "reverse": True}, {"axis": 1, "exclusive": True}]
    kinds.append({"axis": 1, "exclusive": True, "reverse": True})
    outputs = [one.tolist() for one in computed(lambda mb, x: [mb.cumsum(x=x, **kind) for kind in kinds], x)]
    assert outputs[0] == [[1, 2, 3], [5, 7, 9]]
    assert outputs[1:3] == [[[1, 3, 6], [4, 9, 15]], [[6, 5, 3], [15, 11, 6]]]
    assert outputs[3:] == [[[0, 1, 3], [0, 4, 9]], [[5, 3, 0], [11, 6, 0]]]


@pytest.mark.parametrize("axis", [1, -1])
def test_softmax(computed, same, axis):
    x = np.random.default_rng(4).normal(size=(2, 3, 4)).astype(np.float32) * 30
    same(computed(lambda mb, x: mb.softmax(x=x, axis=axis), x)[0], torch.from_numpy(x).softmax(axis))
