"""A fused network is its model at the example and wherever it says so, and it refuses every other size."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repnets
from repnets import RepnetsError
from repnets.fusion.network_check import checked_sizes
from repnets.fusion.sizes import FreeSize
from repnets.networks import MODELS
from repnets.outputs import named
from tests.fixtures import small_networks
from tests.fixtures.kinds import in_ci

ANY = FreeSize(1)


class Net(nn.Module):
    """Two convolutions of 3 x 3, and whatever happens between them and to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)

    def given(self, x: Tensor) -> Tensor:
        return x

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y.relu()

    def forward(self, x: Tensor) -> Tensor:
        x = self.given(x)
        return self.b(self.between(self.norm(self.a(x)), x))


def net(between=None, given=None) -> nn.Module:
    """A `Net` with steps of its own: `between(self, y, x)` and `given(self, x)`."""
    made = Net()
    steps = {name: step for name, step in (("between", between), ("given", given)) if step}
    made.__class__ = type("Net", (Net,), steps)
    return made


def branch(condition):
    return lambda: net(lambda _, y, x: y.softmax(1) if condition(x) else y.relu())


def clamped_when(condition):
    """A branch that random numbers seldom tell."""
    return lambda: net(lambda _, y, x: y.clamp(-9, 9) if condition(x) else y)


def halved_pool(y: Tensor, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return F.interpolate(F.adaptive_max_pool2d(y, (height // 2, width // 2)), size=(height, width))


def padded_as_tensorflow(x: Tensor) -> Tensor:
    down, right = (max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in x.shape[2:])
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


def written_slice(x: Tensor) -> Tensor:
    x[:, :, 0] = 0
    x[:, 1:] += 1
    return x


def padded_to(x: Tensor, multiple: int) -> Tensor:
    down, right = (-size % multiple for size in x.shape[2:])
    return F.pad(x, (0, right, 0, down))


class Overwriting(nn.Module):
    """Reads its input again after a layer has written into it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.c, self.d = layer, nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.c(x) + self.d(y)


class Rows(nn.Module):
    """A network whose one convolution goes over the flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.norm = nn.Conv1d(3, 3, 3, padding=1), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.c(x.flatten(2))).reshape(x.shape)


class Scales(nn.Module):
    """Maps of a half, a quarter and an eighth of the size, each added to the larger one: HRNet, FPN, U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(channels, 4, 3, 2, 1) for channels in (3, 4, 4))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        half = self.norm(self.down[0](x))
        quarter = self.down[1](half)
        return half + F.interpolate(quarter + F.interpolate(self.down[2](quarter), scale_factor=2.0), scale_factor=2.0)


class Refusing(Net):
    """Its own code refuses sizes, which the exporter does not see."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and (x.shape[2] % 8 or x.shape[3] % 8):
            raise ValueError("height and width have to be multiples of 8")
        return super().forward(x)


FREE = {"batch": ANY, "height": ANY, "width": ANY}
EIGHTS = {"batch": ANY, "height": FreeSize(8, 8), "width": FreeSize(8, 8)}
# the network, and what it is to claim for an example of 32 x 32; None: whatever it claims has to be true
CASES = {
    "width at least 64": (branch(lambda x: x.shape[-1] >= 64), {"batch": ANY, "height": ANY}),
    "width at least 20": (branch(lambda x: x.shape[-1] < 20), {"batch": ANY, "height": ANY, "width": FreeSize(20)}),
    "a branch that numbers do not tell": (
        clamped_when(lambda x: x.shape[-1] < 20),
        {"batch": ANY, "height": ANY, "width": FreeSize(20)},
    ),
    "even width": (
        branch(lambda x: x.shape[-1] % 2 == 1),
        {"batch": ANY, "height": ANY, "width": FreeSize(2, 2)},
    ),
    "not 40": (branch(lambda x: x.shape[-1] == 40), {"batch": ANY, "height": ANY}),
    "not 640": (branch(lambda x: x.shape[-1] == 640), {"batch": ANY, "height": ANY}),
    "area": (branch(lambda x: x.shape[2] * x.shape[3] > 3000), {"batch": ANY}),
    "large area": (branch(lambda x: x.shape[2] * x.shape[3] > 300_000), {"batch": ANY}),
    "elements": (branch(lambda x: x.numel() > 5000), None),
    "square": (branch(lambda x: x.shape[2] == x.shape[3]), None),
    "wide": (branch(lambda x: x.shape[3] > x.shape[2]), None),
    "one image": (branch(lambda x: x.size(0) == 1), {"height": ANY, "width": ANY}),
    "more than two images": (branch(lambda x: x.size(0) > 2), None),
    "four images": (branch(lambda x: x.size(0) == 4), None),
    "squeezed": (lambda: net(lambda _, y, x: y.mean((2, 3), keepdim=True).squeeze()[..., None, None] + y), None),
    "pool to half": (lambda: net(lambda _, y, x: halved_pool(y, x)), {"batch": ANY}),
    "pool to 5": (lambda: net(lambda _, y, x: F.adaptive_avg_pool2d(y, 5)), FREE),
    "pool to 7 x 3": (lambda: net(lambda _, y, x: F.adaptive_max_pool2d(y, (7, 3))), None),
    "resized to the input": (
        lambda: net(lambda _, y, x: F.interpolate(F.avg_pool2d(y, 2), size=x.shape[2:], mode="bilinear")),
        {"batch": ANY, "height": FreeSize(2), "width": FreeSize(2)},
    ),
    "resized to 24": (lambda: net(lambda _, y, x: F.interpolate(y, size=(24, 24))), FREE),
    "resized by 1.5": (lambda: net(lambda _, y, x: F.interpolate(y, scale_factor=1.5, mode="bilinear")), None),
    "half by truth": (lambda: net(lambda _, y, x: y[:, :, : int(x.shape[2] * 0.5)]), None),
    "padded as TensorFlow": (lambda: net(given=lambda _, x: padded_as_tensorflow(x)), {"batch": ANY}),
    "padded to 8": (lambda: net(given=lambda _, x: padded_to(x, 8)), None),
    "flattened": (lambda: nn.Sequential(Net(), nn.Flatten(), nn.Linear(4 * 32 * 32, 2)), {"batch": ANY}),
    "ReLU on the input": (lambda: Overwriting(nn.ReLU(inplace=True)), None),
    "ReLU6 on the input": (lambda: Overwriting(nn.ReLU6(inplace=True)), None),
    "a wide clamp on the input": (lambda: Overwriting(nn.Hardtanh(-30, 30, inplace=True)), None),
    "relu_": (lambda: net(given=lambda _, x: F.relu_(x) + x), FREE),
    "relu_ behind a view": (lambda: net(given=lambda _, x: F.relu_(x.flatten(2))[..., :1, None] + x), None),
    "+= and mul_": (lambda: net(lambda _, y, x: y.mul_(2).add_(y)), FREE),
    "+= on the input": (lambda: net(given=lambda s, x: x.__iadd__(x.mean())), None),
    "slices written": (lambda: net(given=lambda _, x: written_slice(x)), None),
    "in place behind a concatenation": (lambda: net(lambda s, y, x: torch.cat([s.relu(y), y], 1)[:, 4:12]), FREE),
    "rows": (Rows, None),
    "maps of several sizes": (Scales, EIGHTS),
    "sizes refused by the model": (Refusing, EIGHTS),
}


def sizes_of(free: FreeSize | None, own: int) -> tuple[list[int], list[int]]:
    """Sizes of an axis that are claimed, of both parities, and some more that may not be."""
    if free is None:
        return [own], [own - 1, own + 1, 2 * own, 97, 640]
    taken = [free.min, free.min + free.step, 33, 34, 41, 64]
    return [size for size in taken if size in free], [size for size in (*taken, 7, 20) if size not in free and size > 0]


def hold(relative_error, model: nn.Module, example: Tensor, tolerance: float) -> repnets.FuseResult:
    """Equal at the example and wherever claimed; refused in words everywhere else."""
    given = example.clone()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = repnets.fuse(model, example)
    assert torch.equal(example, given)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    names = ("batch", "channels", "height", "width")
    free = [result.report.free.get(name) for name in names]
    taken, others = zip(*map(sizes_of, free, example.shape), strict=True)
    batches = [size for size in (1, 3) if free[0] and size in free[0]] or taken[0][:1]
    heights, widths = (
        itertools.islice(itertools.cycle(sizes), 2 * len(max(taken[2:], key=len))) for sizes in taken[2:]
    )
    images = {*zip(heights, widths, strict=True), *itertools.product(taken[2][:2], taken[3][:2])}
    generator = torch.Generator().manual_seed(1)
    for shape in [tuple(example.shape), *((batch, 3, *image) for batch in batches for image in sorted(images))]:
        x = torch.randn(shape, generator=generator).to(example.dtype)
        with torch.no_grad():
            want, got = model(x.clone()), result.module(x.clone())
        want, got = named(want), named(got)
        assert list(want) == list(got)
        for name, tensor in want.items():
            if tensor.abs().max():
                assert relative_error(got[name], tensor) < tolerance, (shape, name)
    for axis, sizes in enumerate(others):
        for size in sizes:
            shape = tuple(size if place == axis else own for place, own in enumerate(example.shape))
            if free[axis] is None or size not in free[axis]:
                with pytest.raises(RepnetsError, match=f"input's {names[axis]} is {size}, and this network takes"):
                    result.module(torch.zeros(shape, dtype=example.dtype))
    return result


@pytest.mark.parametrize("case", CASES)
def test_equal_or_refused(case, randomise, relative_error):
    make, free = CASES[case]
    torch.manual_seed(0)
    model = randomise(make()).double()
    result = hold(relative_error, model, torch.randn(1, 3, 32, 32, dtype=torch.float64), 1e-12)
    if free is not None:
        assert result.report.free == free
    again = repnets.fuse(result.module, torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert again.report.free == result.report.free
    assert again.report.regions == ()


NETWORKS = [pytest.param(name, marks=[] if name == "toy" else in_ci(name)) for name in repnets.list_models()]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_equal_or_refused(name, randomise, relative_error):
    torch.manual_seed(0)
    model = randomise(repnets.create_model(name, num_classes=5)).double()
    if name == "repvgg_d2se":
        # a gate in each of its 25 blocks: where maps grow, a last digit of the weights changes the result by a quarter
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data *= 0.7
    result = hold(relative_error, model, torch.randn(1, 3, 64, 64, dtype=torch.float64), 1e-9)
    step = MODELS[name].size_step
    assert result.report.free == {"batch": ANY, "height": FreeSize(step, step), "width": FreeSize(step, step)}


class Chaos(nn.Sequential):
    """A last digit of the weights changes everything that it gives."""

    def forward(self, x):
        y = super().forward(x).sigmoid()
        for _ in range(100):  # the logistic map
            y = 3.99 * y * (1 - y)
        return y


def test_a_network_whose_last_digits_decide_is_not_called_wrong(randomise):
    model = randomise(Chaos(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).double()
    result = repnets.fuse(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert result.report.after.batch_norms == 0


@pytest.mark.parametrize("form", small_networks.FORMS)
def test_the_small_networks_are_equal_or_refused(form, relative_error):
    model = small_networks.network(form).double()
    assert hold(relative_error, model, torch.randn(small_networks.SHAPE).double(), 1e-12).report.free == FREE


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_a_float64_network_that_rounds_on_the_way_is_not_called_wrong(dtype, allowed, relative_error):
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = F.conv2d(x.to(dtype), self.first.weight.to(dtype), self.first.bias.to(dtype)) * self.first.bias[0]
            return self.second(y.double() / 3 + 1)

    torch.manual_seed(0)
    model, x = Rounds().double().eval(), torch.randn(2, 4, 9, 9, dtype=torch.float64)
    result = repnets.fuse(model, x)
    assert relative_error(result.module(x), model(x)) < allowed


def test_what_treats_each_channel_leaves_tokens_in_their_groups(relative_error):
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 3, 14))

        def forward(self, x):
            y = x.new_zeros(x.shape).add(x).flatten(0, 1)
            return y.unflatten(0, x.shape[:2]) + self.position[..., : x.shape[-1]]

    model = Grouped().eval()
    result = repnets.fuse(model, torch.randn(1, 3, 14))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 14)
        assert relative_error(result.module(x), model(x)) < 1e-6


@pytest.fixture(scope="module")
def even(randomise) -> tuple[nn.Module, repnets.FuseResult]:
    """A network of even widths, fused."""
    torch.manual_seed(0)
    model = randomise(CASES["even width"][0]())
    return model, repnets.fuse(model, torch.zeros(1, 3, 16, 16))


def test_a_copy_holds_what_is_claimed_and_so_does_a_file(even, relative_error, tmp_path):
    model, result = even
    x = torch.randn(3, 3, 9, 10)
    program = repnets.capture(result.module, torch.zeros(1, 3, 16, 16))
    torch.export.save(program, tmp_path / "even.pt2")
    again = torch.export.export(result.module, (x,)).module()
    copies = [copy.deepcopy(result.module), pickle.loads(pickle.dumps(result.module))]
    with torch.no_grad():
        for module in (*copies, torch.export.load(tmp_path / "even.pt2").module(), again):
            assert relative_error(module(x), model(x)) < 1e-5
            with pytest.raises((RepnetsError, AssertionError), match=r"width is 9|Guard failed"):
                module(torch.zeros(3, 3, 9, 9))
    with pytest.raises(RepnetsError, match="width is 9, and this network takes 2, 4, 6 and so on: it was captured"):
        copies[1](torch.zeros(3, 3, 9, 9))


def test_another_number_of_dimensions_or_channels_is_refused(even):
    module = even[1].module
    with pytest.raises(RepnetsError, match="The input has 3 dimensions, and this network takes 4: batch, "):
        module(torch.zeros(3, 16, 16))
    with pytest.raises(RepnetsError, match="The input's channels is 4, and this network takes 3 alone"):
        module(torch.zeros(1, 4, 16, 16))


def test_the_report_says_free_fixed_or_in_steps(even, randomise):
    assert str(even[1].report).endswith(
        "input sizes: batch free; channels fixed at 3; height free; width fixed modulo 2: 2, 4, 6 and so on"
    )
    entry = even[1].module.input_sizes
    assert str(even[1].report).endswith(f"input sizes: {entry.extra_repr()}")
    assert even[1].report.to_dict()["free"]["width"] == {"min": 2, "step": 2}


@pytest.mark.parametrize(
    ("between", "written"),
    [
        (lambda s, y, x: s.a(x).__iadd__(y), False),  # nobody reads it again
        (lambda s, y, x: y.view(y.shape).__iadd__(s.a(x)) + y, True),  # a view of it is written
        (lambda s, y, x: torch.cat([y + (z := y.relu()), z.mul_(y)], 1)[:, 4:12], False),
        (lambda s, y, x: y.__iadd__(s.a(x)) + y[:, :1], True),
        (lambda s, y, x: (z := s.a(x) * 2) + (w := z.tanh()) * z.sub_(y).sigmoid_() + w * z.clamp_(0.2, 0.6), False),
        (lambda s, y, x: torch.cat([(z := s.a(x))[:, :1], z.abs(), z.mul_(3)], 1)[:, :8] + z, True),
        (lambda s, y, x: (z := s.a(x), z[:, 1:3].relu_(), z[:, 0, ..., 1:].mul_(y[:, 0, ..., 1:]))[0] + y, False),
        (lambda s, y, x: (y.transpose(1, 3)[..., 2:].copy_(s.a(x).transpose(1, 3)[..., :6]), y)[1] * 2, False),
        (lambda s, y, x: (z := s.a(x), z.__setitem__((slice(None), [2, 5]), y[:, :2]), z[:, 7].fill_(3))[0] + y, False),
        (lambda s, y, x: (row := (z := s.a(x))[:, 1], whole := z[:, :8], row.add_(1), whole.mul_(2))[3] + row, True),
        (lambda s, y, x: s.a(x.mul_(2)) + s.a(x) + x.sum(1, keepdim=True), False),
    ],
)
def test_calls_that_overwrite_are_read_as_calls_that_do_not(between, written, randomise, relative_error, monkeypatch):
    traced_again = []
    again = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda program, table: traced_again.append(program) or again(program, table),
    )
    hold(relative_error, randomise(net(between)).double(), torch.randn(1, 3, 32, 32, dtype=torch.float64), 1e-12)
    assert bool(traced_again) <= written


class Pair(nn.Module):
    """Two images, of which one may be smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.f(a) - self.f(b).mean((2, 3), keepdim=True)


def test_a_network_of_several_inputs(randomise, relative_error):
    model = randomise(Pair()).double()
    a, b = torch.randn(2, 3, 16, 16).double(), torch.randn(2, 3, 12, 12).double()
    result = repnets.fuse(model, (a, b))
    assert (result.report.after.batch_norms, result.report.free) == (0, {"batch": FreeSize(1)})
    assert result.report.input_shape == ((None, 3, 16, 16), (None, 3, 12, 12))
    told = "input sizes: batch free, all others fixed, (N, 3, 16, 16) and (N, 3, 12, 12)"
    assert str(result.report).endswith(told)
    with torch.no_grad():
        assert relative_error(pickle.loads(pickle.dumps(result.module))(a, b), model(a, b)) < 1e-12
    with pytest.raises(RepnetsError, match="The input's height is 16, and this network takes 12 alone"):
        result.module(a, a)
    again = repnets.fuse(result.module, (a, b))
    assert again.report.regions == ()
    program = repnets.capture(result.module, (a, b)).module()
    for batch in (1, 3):
        a, b = torch.randn(batch, 3, 16, 16).double(), torch.randn(batch, 3, 12, 12).double()
        with torch.no_grad():
            assert relative_error(program(a, b), model(a, b)) < 1e-12
            assert relative_error(result.module(a, b), model(a, b)) < 1e-12


def test_an_input_that_is_no_tensor_is_refused():
    with pytest.raises(RepnetsError, match="The example input is int, and has to be a tensor, or a tuple of tensors"):
        repnets.fuse(Net().eval(), 5)
    with pytest.raises(RepnetsError, match=r"does not run on .*; of several inputs, a tuple"):
        repnets.fuse(Pair().eval(), torch.zeros(1, 3, 16, 16))


class Looking(Net):
    """Branches on its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return super().forward(x)


def test_a_branch_on_numbers_is_refused_with_its_line_and_no_graph_is_printed(capfd):
    with pytest.raises(
        RepnetsError, match=r"at test_claims\.py:\d+ \(if x\.sum\(\) > 0:\): Could not guard .*torch\.where"
    ):
        repnets.fuse(Looking().eval(), torch.randn(1, 3, 8, 8))
    assert capfd.readouterr() == ("", "")


class Counting(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Remembering(Net):
    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        last, self.last = self.last, y.detach()
        return y if last is None else y + last


@pytest.mark.parametrize("model", [Counting, Remembering])
def test_a_network_that_keeps_something_from_call_to_call_is_refused(model):
    with pytest.raises(RepnetsError, match="keeps a value from call to call"):
        repnets.fuse(model().eval(), torch.randn(1, 3, 8, 8))


class Drawing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(x.shape[0], 1, 1, 1, dtype=x.dtype)


def test_a_network_that_draws_random_numbers_is_compared_with_the_same_ones(randomise, relative_error):
    model = randomise(Drawing()).double()
    result = repnets.fuse(model, torch.randn(1, 3, 8, 8).double())
    assert set(result.report.free) == {"batch", "height", "width"}
    x = torch.randn(2, 3, 12, 12).double()
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert relative_error(result.module(x), expected) < 1e-12


def test_a_network_that_is_wrong_at_the_example_is_not_given(randomise):
    """The check can fail."""
    model = randomise(Net()).double()
    x = torch.randn(1, 3, 16, 16).double()
    with pytest.raises(RepnetsError, match=r"does not compute what the model does, at the example itself: they differ"):
        checked_sizes(model, lambda x: model(x) * 1.001, [x], {2: ANY})

    def wrong_at_odd_heights(x: Tensor) -> Tensor:
        return model(x) * (1 + x.shape[2] % 2)

    assert checked_sizes(model, wrong_at_odd_heights, [x], {0: ANY, 2: ANY, 3: ANY}) == {0: ANY, 3: ANY}
    assert checked_sizes(model, model, [x], {0: ANY, 2: ANY, 3: FreeSize(2, 2)}) == {0: ANY, 2: ANY, 3: FreeSize(2, 2)}


@pytest.mark.parametrize("last", [lambda y: y, lambda y: y.mean((2, 3))], ids=["empty", "NaN"])
def test_sizes_at_which_a_crop_leaves_nothing_are_not_claimed(last, randomise, relative_error):
    model = net(lambda _, y, x: last(y[:, :, 2:-2, 2:-2]))
    model.b = nn.Identity()
    model = randomise(model).double()
    free = {"batch": ANY, "height": FreeSize(5), "width": FreeSize(5)}
    assert hold(relative_error, model, torch.randn(1, 3, 12, 12, dtype=torch.float64), 1e-12).report.free == free


def test_a_network_may_give_a_narrower_type_than_its_own(randomise, relative_error):
    class Narrower(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.a(x)).float()
            return F.conv2d(y, self.b.weight.float(), padding=1) * self.b.bias[0]

    model = Narrower()
    hold(relative_error, randomise(model).double(), torch.randn(1, 3, 12, 12, dtype=torch.float64), 1e-5)


class Same(nn.Module):
    """Layers of stride 2 whose padding is rounded up from the size, in whole numbers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, stride=2) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            down, right = (max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[2:])
            x = layer(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))).relu()
        return x


@pytest.mark.parametrize(("layers", "free"), [(1, FREE), (4, {"batch": ANY})])
def test_sizes_that_would_take_minutes_to_trace_are_fixed(layers, free, randomise, relative_error):
    model, x = randomise(Same(layers)).double(), torch.randn(1, 3, 48, 48, dtype=torch.float64)
    assert hold(relative_error, model, x, 1e-12).report.free == free
