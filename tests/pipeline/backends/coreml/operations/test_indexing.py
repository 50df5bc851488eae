import numpy as np
import pytest
import torch

X = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_slices(computed, seed):
    generator = np.random.default_rng(seed)
    begin = [int(generator.integers(-size, size - 1)) for size in X.shape]
    end = [int(generator.integers((first % size) + 1, size + 1)) for first, size in zip(begin, X.shape, strict=True)]
    stride = generator.integers(1, 4, 3).tolist()
    from_start, to_end, squeezed = (generator.integers(0, 3, 3) == 0 for _ in range(3))
    squeezed[0] = False
    given = {"begin_mask": from_start, "end_mask": to_end, "squeeze_mask": squeezed}
    meant = tuple(
        begin[axis]
        if squeezed[axis]
        else slice(None if from_start[axis] else begin[axis], None if to_end[axis] else end[axis], stride[axis])
        for axis in range(3)
    )
    (output,) = computed(lambda mb, x: mb.slice_by_index(x=x, begin=begin, end=end, stride=stride, **given), X)
    assert np.array_equal(output, X[meant])


def test_slices_backwards_and_by_size(computed):
    def build(mb, x):
        return [
            mb.slice_by_index(x=x, begin=[3, 4, 0], end=[0, 0, 6], stride=[-2, -1, 1]),
            mb.slice_by_index(
                x=x,
                begin=[0, 0, 0],
                end=[4, 0, 6],
                stride=[1, -1, 1],
                end_mask=[False, True, False],
                begin_mask=[False, True, False],
            ),
            mb.slice_by_size(x=x, begin=[1, 0, 2], size=[2, -1, 3]),
        ]

    backwards, turned, part = computed(build, X)
    assert np.array_equal(backwards, X[3:0:-2, 4:0:-1])
    assert np.array_equal(turned, X[:, ::-1])
    assert np.array_equal(part, X[1:3, :, 2:5])


def test_a_part_is_replaced(computed):
    update = np.ones((2, 5, 2), np.float32)
    (output,) = computed(
        lambda mb, x, update: mb.slice_update(x=x, update=update, begin=[1, 0, 0], end=[3, 5, 6], stride=[1, 1, 3]),
        X,
        update,
        target="iOS18",
    )
    expected = X.copy()
    expected[1:3, :, ::3] = 1
    assert np.array_equal(output, expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gathering(computed, axis):
    places = np.array([[1, -1], [0, 2]], np.int32)
    whole = np.random.default_rng(1).integers(0, X.shape[axis], X.shape).astype(np.int32)

    def build(mb, x, places, whole):
        along = mb.gather_along_axis(x=x, indices=whole, axis=axis)
        return [mb.gather(x=x, indices=places, axis=axis), mb.gather(x=x, indices=np.int32(2), axis=axis), along]

    taken, single, along = computed(build, X, places, whole)
    assert np.array_equal(taken, np.take(X, places, axis))
    assert np.array_equal(single, np.take(X, 2, axis))
    assert np.array_equal(along, np.take_along_axis(X, whole, axis))


def test_gathering_in_batches(computed):
    places = np.array([[1, 0], [2, 2], [0, 4], [3, 1]], np.int32)
    points = np.array([[0, 1], [3, 4]], np.int32)
    batched, nested, each = computed(
        lambda mb, x, places, points: [
            mb.gather(x=x, indices=places, axis=1, batch_dims=1),
            mb.gather_nd(x=x, indices=points),
            mb.gather_nd(x=x, indices=mb.expand_dims(x=places, axes=[2]), batch_dims=1),
        ],
        X,
        places,
        points,
    )
    expected = np.stack([one[place] for one, place in zip(X, places, strict=True)])
    assert np.array_equal(batched, expected) and np.array_equal(each, expected)
    assert np.array_equal(nested, X[[0, 3], [1, 4]])


COMBINED = {
    "update": lambda _, new: new,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


@pytest.mark.parametrize("mode", COMBINED)
def test_scattering(computed, mode):
    rows, points = np.array([3, -4], np.int32), np.array([[0, 1], [3, 4]], np.int32)
    along = np.argsort(X, 1)[:, :3].astype(np.int32)
    new = np.random.default_rng(2).normal(size=(4, 5, 6)).astype(np.float32)
    where = {"mode": mode, "validate_indices": False}

    def build(mb, x, rows, points, along, new):
        return [
            mb.scatter(data=x, indices=rows, updates=mb.slice_by_size(x=new, begin=[0] * 3, size=[2, 5, 6]), **where),
            mb.scatter_nd(
                data=x,
                indices=points,
                updates=mb.squeeze(x=mb.slice_by_size(x=new, begin=[0] * 3, size=[2, 1, 6]), axes=[1]),
                **where,
            ),
            mb.scatter_along_axis(
                data=x,
                indices=along,
                updates=mb.slice_by_size(x=new, begin=[0] * 3, size=[4, 3, 6]),
                axis=1,
                **where,
            ),
        ]

    whole, each, sorted_ = computed(build, X, rows, points, along, new)
    combine = COMBINED[mode]
    expected = [X.copy(), X.copy(), X.copy()]
    expected[0][rows] = combine(X[rows], new[:2])
    expected[1][[0, 3], [1, 4]] = combine(X[[0, 3], [1, 4]], new[:2, 0])
    np.put_along_axis(expected[2], along, combine(np.take_along_axis(X, along, 1), new[:, :3]), 1)
    for got, want in zip((whole, each, sorted_), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(computed, axis):
    places = np.array([[1, 0, 3], [2, 2, 1]], np.int32)
    (output,) = computed(
        lambda mb, x: mb.one_hot(
            indices=x, one_hot_vector_size=4, axis=axis, on_value=np.float32(2), off_value=np.float32(-1)
        ),
        places,
    )
    hot = torch.nn.functional.one_hot(torch.from_numpy(places).long(), 4).numpy()
    assert np.array_equal(output, np.moveaxis(np.where(hot, 2.0, -1.0), -1, axis))


@pytest.mark.parametrize(("lower", "upper"), [(-1, 0), (0, -1), (1, 2), (-1, -1), (0, 0)])
def test_bands(computed, lower, upper):
    (output,) = computed(lambda mb, x: mb.band_part(x=x, lower=lower, upper=upper), X)
    row, column = np.indices(X.shape[1:])
    inside = ((row - column <= lower) | (lower < 0)) & ((column - row <= upper) | (upper < 0))
    assert np.array_equal(output, X * inside)
