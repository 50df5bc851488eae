import numpy as np
import pytest
import torch
from torch.nn import functional


def windows(sizes, pads, kernel, strides, ceil_mode):
    """The window of each output of one dimension, as positions of the input; None is padding."""
    before, after = pads
    places = [None] * before + list(range(sizes)) + [None] * after
    count = (len(places) - kernel) / strides + 1
    count = int(np.ceil(count)) if ceil_mode else int(count)
    if ceil_mode and (count - 1) * strides >= sizes + before:
        count -= 1
    return [places[index * strides : index * strides + kernel] for index in range(count)]


def pooled(x, by_axis, reduce):
    """The reduction of every window, the slow way: reduce(numbers, padded) of a flat window."""
    rows, columns = by_axis
    answer = np.empty((*x.shape[:2], len(rows), len(columns)), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            inside = [x[:, :, r, c] for r in row for c in column if r is not None and c is not None]
            answer[:, :, i, j] = reduce(np.stack(inside), len(row) * len(column))
    return torch.from_numpy(answer)


@pytest.mark.parametrize("seed", range(20))
def test_pools_of_images(computed, same, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(2, 3, *generator.integers(7, 11, 2))).astype(np.float32)
    kernel, strides = generator.integers(2, 4, 2).tolist(), generator.integers(1, 4, 2).tolist()
    kind = ("valid", "custom", "same", "same_lower")[seed % 4]
    ceil_mode = kind in ("valid", "custom") and seed % 3 == 0
    if ceil_mode:  # else coremltools declares windows that lie outside
        strides = [min(one) for one in zip(strides, kernel, strict=True)]
    pads = [(0, 0), (0, 0)]
    if kind == "custom":
        pads = [(int(before), int(before)) for before in generator.integers(0, 2, 2)]
        if not ceil_mode:  # up to a kernel less one, more than torch itself pads
            pads = [tuple(generator.integers(0, size, 2).tolist()) for size in kernel]
    elif kind.startswith("same"):
        wanted = [-(-size // stride) for size, stride in zip(x.shape[2:], strides, strict=True)]
        totals = [max(0, (w - 1) * s + k - n) for w, s, k, n in zip(wanted, strides, kernel, x.shape[2:], strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
        pads = pads if kind == "same" else [(after, before) for before, after in pads]
    given = {"kernel_sizes": kernel, "strides": strides, "pad_type": kind, "ceil_mode": ceil_mode}
    given |= {"pad": [amount for pair in pads for amount in pair]} if kind == "custom" else {}

    def build(mb, x):
        outputs = [
            mb.max_pool(x=x, **given),
            mb.avg_pool(x=x, exclude_padding_from_average=True, **given),
            mb.avg_pool(x=x, exclude_padding_from_average=False, **given),
        ]
        return outputs if ceil_mode else [*outputs, mb.l2_pool(x=x, **given)]

    by_axis = [windows(*one, ceil_mode) for one in zip(x.shape[2:], pads, kernel, strides, strict=True)]
    expected = [
        pooled(x, by_axis, lambda inside, count: inside.max(0)),
        pooled(x, by_axis, lambda inside, count: inside.mean(0)),
        pooled(x, by_axis, lambda inside, count: inside.sum(0) / count),
        pooled(x, by_axis, lambda inside, count: np.sqrt((inside**2).sum(0))),
    ]
    outputs = computed(build, x)
    for output, wanted in zip(outputs, expected[: len(outputs)], strict=True):
        same(output, wanted)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_pools_are_torchs_own_where_torch_has_them(computed, same, ceil_mode, exclude):
    x = np.random.default_rng(0).normal(size=(1, 2, 8, 9)).astype(np.float32)
    given = {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [1] * 4, "ceil_mode": ceil_mode}
    largest, mean = computed(
        lambda mb, x: [mb.max_pool(x=x, **given), mb.avg_pool(x=x, exclude_padding_from_average=exclude, **given)], x
    )
    t = torch.from_numpy(x)
    same(largest, functional.max_pool2d(t, 3, 2, 1, ceil_mode=ceil_mode))
    same(mean, functional.avg_pool2d(t, 3, 2, 1, ceil_mode, not exclude))


@pytest.mark.parametrize("dims", [1, 3])
def test_pools_of_lines_and_volumes(computed, same, dims):
    x = np.random.default_rng(1).normal(size=(2, 3, *[7] * dims)).astype(np.float32)
    given = {"kernel_sizes": [3] * dims, "strides": [2] * dims, "pad_type": "valid"}
    largest, mean = computed(lambda mb, x: [mb.max_pool(x=x, **given), mb.avg_pool(x=x, **given)], x)
    t = torch.from_numpy(x)
    same(largest, getattr(functional, f"max_pool{dims}d")(t, 3, 2))
    same(mean, getattr(functional, f"avg_pool{dims}d")(t, 3, 2))
