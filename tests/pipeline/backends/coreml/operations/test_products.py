import numpy as np
import pytest
import torch
from torch.nn import functional


def numbers(generator, *shape):
    return generator.normal(size=shape).astype(np.float32)


def padded(x, pads):
    return functional.pad(x, [amount for pair in reversed(pads) for amount in pair])


@pytest.mark.parametrize("seed", range(24))
def test_convolutions(computed, same, seed):
    """1 to 3 dimensions, groups, dilations, strides, every kind of padding, with and without a bias."""
    generator = np.random.default_rng(seed)
    dims = int(generator.integers(1, 4))
    groups = int(generator.choice([1, 2, 4]))
    kernel, strides, dilations = (generator.integers(1, top + 1, dims).tolist() for top in (4, 3, 2))
    kind = ("valid", "custom", "same", "same_lower")[seed % 4]
    sizes = generator.integers(8, 12, dims).tolist()
    x, weight = numbers(generator, 2, 4, *sizes), numbers(generator, 8, 4 // groups, *kernel)
    bias = numbers(generator, 8) if seed % 3 else None
    pad = generator.integers(0, 3, 2 * dims).tolist()
    given = {"weight": weight, "strides": strides, "dilations": dilations, "groups": groups, "pad_type": kind}
    given |= {"pad": pad} if kind == "custom" else {}
    given |= {} if bias is None else {"bias": bias}

    pads = [(0, 0)] * dims
    if kind == "custom":
        pads = list(zip(pad[::2], pad[1::2], strict=True))
    elif kind != "valid":
        reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
        wanted = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        totals = [max(0, (w - 1) * s + r - n) for w, s, r, n in zip(wanted, strides, reach, sizes, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
        pads = pads if kind == "same" else [(after, before) for before, after in pads]
    convolve = getattr(functional, f"conv{dims}d")
    bias = None if bias is None else torch.from_numpy(bias)
    whole = padded(torch.from_numpy(x), pads)
    expected = convolve(whole, torch.from_numpy(weight), bias, strides, 0, dilations, groups)
    same(computed(lambda mb, x: mb.conv(x=x, **given), x)[0], expected)


def test_a_convolution_by_weights_that_are_computed(computed, same):
    generator = np.random.default_rng(0)
    x, weight = numbers(generator, 1, 3, 6, 6), numbers(generator, 4, 3, 2, 2)
    expected = functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight))
    same(computed(lambda mb, x, weight: mb.conv(x=x, weight=weight), x, weight)[0], expected)


@pytest.mark.parametrize("seed", range(16))
def test_transposed_convolutions(computed, same, seed):
    generator = np.random.default_rng(100 + seed)
    dims = int(generator.integers(1, 3))
    groups = int(generator.choice([1, 2]))
    kernel = generator.integers(2, 5, dims).tolist()
    strides = generator.integers(1, 4, dims).tolist()
    x = numbers(generator, 2, 4, *generator.integers(4, 7, dims))
    weight, bias = numbers(generator, 4, 6 // groups, *kernel), numbers(generator, 6)
    padding = [int(generator.integers(0, min(2, size))) for size in kernel]
    more = [int(generator.integers(0, stride)) for stride in strides]
    convolve = getattr(functional, f"conv_transpose{dims}d")
    expected = convolve(*(torch.from_numpy(one) for one in (x, weight, bias)), strides, padding, more, groups)
    given = {"weight": weight, "bias": bias, "strides": strides, "groups": groups, "pad_type": "custom"}
    given |= {"pad": [amount for amount in padding for _ in range(2)], "output_shape": list(expected.shape)}
    same(computed(lambda mb, x: mb.conv_transpose(x=x, **given), x)[0], expected)


def test_transposed_convolutions_of_other_paddings(computed, same):
    generator = np.random.default_rng(1)
    x, weight = numbers(generator, 1, 2, 5, 5), numbers(generator, 2, 3, 4, 4)
    whole = functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), stride=2)
    kinds = ({"pad_type": "valid"}, {"pad_type": "custom", "pad": [0, 1, 2, 1]}, {"pad_type": "same"})
    outputs = computed(
        lambda mb, x: [mb.conv_transpose(x=x, weight=weight, strides=[2, 2], **kind) for kind in kinds], x
    )
    for output, expected in zip(outputs, (whole, whole[..., :-1, 2:-1], whole[..., 1:-1, 1:-1]), strict=True):
        same(output, expected)


def test_linear_and_matmul(computed, same):
    generator = np.random.default_rng(2)
    x, y = numbers(generator, 2, 3, 4), numbers(generator, 2, 5, 4)
    weight, bias = numbers(generator, 6, 4), numbers(generator, 6)

    def build(mb, x, y):
        return [
            mb.linear(x=x, weight=weight, bias=bias),
            mb.linear(x=x, weight=weight),
            mb.matmul(x=x, y=y, transpose_y=True),
            mb.matmul(x=x, y=mb.transpose(x=x, perm=[0, 2, 1])),
            mb.matmul(x=y, y=mb.transpose(x=x, perm=[0, 2, 1]), transpose_x=False),
            mb.matmul(x=x, y=x, transpose_x=True),
        ]

    a, b = torch.from_numpy(x), torch.from_numpy(y)
    w, c = torch.from_numpy(weight), torch.from_numpy(bias)
    expected = (functional.linear(a, w, c), functional.linear(a, w), a @ b.mT, a @ a.mT, b @ a.mT, a.mT @ a)
    for output, wanted in zip(computed(build, x, y), expected, strict=True):
        same(output, wanted)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("nchw,nwhu->nchu", ((2, 3, 4, 5), (2, 5, 4, 6))), ("chw,whr->chr", ((3, 4, 5), (5, 4, 6)))],
    ids=["rank 4", "rank 3"],
)
def test_einsum(computed, same, equation, shapes):
    generator = np.random.default_rng(4)
    x, y = (numbers(generator, *shape) for shape in shapes)
    expected = torch.einsum(equation, torch.from_numpy(x), torch.from_numpy(y))
    same(computed(lambda mb, x, y: mb.einsum(values=(x, y), equation=equation), x, y)[0], expected)


@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_attention(computed, same, mask):
    generator = np.random.default_rng(3)
    query, key, value = numbers(generator, 2, 3, 5, 8), numbers(generator, 2, 3, 7, 8), numbers(generator, 2, 3, 7, 4)
    score = numbers(generator, 2, 3, 5, 7)
    tensors = [torch.from_numpy(one) for one in (query, key, value)]
    bias = {None: None, "float": torch.from_numpy(score), "bool": torch.from_numpy(score) < 1}[mask]

    def build(mb, query, key, value, score):
        given = {None: None, "float": score, "bool": mb.less(x=score, y=1.0)}[mask]
        return mb.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=given)

    given = computed(build, query, key, value, score, target="iOS18")[0]
    expected = tensors[0] @ tensors[1].mT / 8**0.5
    if mask:
        expected = expected + bias if mask == "float" else expected.masked_fill(~bias, float("-inf"))
    same(given, expected.softmax(-1) @ tensors[2])
