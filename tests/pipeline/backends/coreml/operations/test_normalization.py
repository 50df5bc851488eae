import numpy as np
import pytest
import torch
from torch.nn import functional


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(0.5, 2, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 6), (2, 4, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("affine", [False, True])
def test_batch_and_instance_norm(computed, same, shape, affine):
    x, mean, gamma, beta = numbers(0, *shape), numbers(1, 4), numbers(2, 4), numbers(3, 4)
    variance = np.abs(numbers(4, 4)) + 0.1
    given = {"gamma": gamma, "beta": beta} if affine else {}
    t = torch.from_numpy(x)
    scale, offset = (torch.from_numpy(one) if affine else None for one in (gamma, beta))
    kinds = 1 if len(shape) == 5 else 2  # an instance norm of volumes is not in MIL

    def build(mb, x):
        norms = [mb.batch_norm(x=x, mean=mean, variance=variance, epsilon=np.float32(0.02), **given)]
        return [*norms, mb.instance_norm(x=x, epsilon=np.float32(0.03), **given)][:kinds]

    moments = (torch.from_numpy(mean), torch.from_numpy(variance))
    expected = [
        functional.batch_norm(t, *moments, scale, offset, eps=0.02),
        functional.instance_norm(t, weight=scale, bias=offset, eps=0.03),
    ]
    for output, wanted in zip(computed(build, x), expected[:kinds], strict=True):
        same(output, wanted)


@pytest.mark.parametrize("axes", [[-1], [2, 3], [1], [0, 2]], ids=str)
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_over_any_axes(computed, same, axes, affine):
    x = numbers(5, 2, 3, 4, 5)
    shape = [x.shape[axis] for axis in axes]
    gamma, beta = numbers(6, *shape), numbers(7, *shape)
    given = {"gamma": gamma, "beta": beta} if affine else {}
    t = torch.from_numpy(x).movedim(axes, list(range(-len(axes), 0)))
    scale, offset = (torch.from_numpy(one) if affine else None for one in (gamma, beta))
    expected = functional.layer_norm(t, shape, scale, offset, 0.01).movedim(list(range(-len(axes), 0)), axes)
    same(computed(lambda mb, x: mb.layer_norm(x=x, axes=axes, epsilon=np.float32(0.01), **given), x)[0], expected)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5)], ids=str)
def test_l2_norm_is_over_the_last_three_axes(computed, same, shape):
    x = numbers(8, *shape)
    t = torch.from_numpy(x)
    expected = t / (t.square().sum((-3, -2, -1), keepdim=True) + 0.5).sqrt()
    same(computed(lambda mb, x: mb.l2_norm(x=x, epsilon=np.float32(0.5)), x)[0], expected)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_norm(computed, same, size):
    x = numbers(9, 2, 7, 4, 5)
    given = {"size": size, "alpha": np.float32(0.3), "beta": np.float32(0.6), "k": np.float32(1.5)}
    expected = functional.local_response_norm(torch.from_numpy(x), size, 0.3, 0.6, 1.5)
    same(computed(lambda mb, x: mb.local_response_norm(x=x, **given), x)[0], expected)
