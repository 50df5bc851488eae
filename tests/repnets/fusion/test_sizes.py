"""Which input sizes a captured program takes: as many as it computes right, and it refuses the others by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import repnets
from repnets.fusion.calls import calls_at
from repnets.fusion.capture import capture
from repnets.fusion.sizes import FreeSize, by_name, free_sizes, narrow_sizes

ANY = FreeSize(1, 1)


class Halving(nn.Module):
    """Five convolutions of stride 2: at 32 pixels and below, one pixel is left of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(channels, 4, 3, 2, 1) for channels in (3, 4, 4, 4, 4)))
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class Windows(nn.Module):
    """Attention's usual prelude: pads to whole windows of 7 x 7 by an amount that is computed from the size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        down, right = -height % 7, -width % 7
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (height + down) // 7, (width + right) // 7
        x = x.view(batch, rows, 7, columns, 7, channels).transpose(2, 3).reshape(-1, 49, channels)
        x = self.mix(x).view(batch, rows, columns, 7, 7, channels).transpose(2, 3)
        return x.reshape(batch, rows * 7, columns * 7, channels)[:, :height, :width]


def unpadded() -> nn.Module:
    """It needs 7 pixels: three kernels of 3 and no padding."""
    return nn.Sequential(*(nn.Conv2d(channels, 4, 3) for channels in (3, 4, 4)), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def kernel_of_two() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def unshuffled() -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))


def tied() -> nn.Module:
    """Height fixed by a linear layer over the columns, width free."""

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(x).mean(3))

    return Columns()


def saved(program, folder) -> torch.export.ExportedProgram:
    torch.export.save(program, folder / "program.pt2")
    return torch.export.load(folder / "program.pt2")


CASES = {
    "one pixel left": (Halving, 32, {"batch": ANY, "height": ANY, "width": ANY}),
    "windows": (Windows, 28, {"batch": ANY, "height": FreeSize(7, 7), "width": FreeSize(7, 7)}),
    "no padding": (unpadded, 16, {"batch": ANY, "height": FreeSize(7), "width": FreeSize(7)}),
    "two pixels": (kernel_of_two, 16, {"batch": ANY, "height": FreeSize(2), "width": FreeSize(2)}),
    "even": (unshuffled, 16, {"batch": ANY, "height": FreeSize(2, 2), "width": FreeSize(2, 2)}),
    "flattened": (flattened, 16, {"batch": ANY}),
    "one axis": (tied, 16, {"batch": ANY, "width": ANY}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_claimed_runs_as_anybody_loads_it_and_the_rest_is_refused(case, tmp_path):
    make, size, free = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    program = saved(capture(model, torch.randn(1, 3, size, size)), tmp_path)
    assert by_name(free_sizes(program), 4) == free
    run = program.module()
    fixed = {"batch": 1, "height": size, "width": size}
    taken = {axis: [one.min, one.min + one.step, one.min + 9 * one.step] for axis, one in free.items()}
    for batch in taken["batch"]:
        for height in taken.get("height", [size]):
            for width in taken.get("width", [size]):
                x = torch.randn(batch, 3, height, width)
                torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)
    for axis in ("height", "width"):
        refused = [one.min - 1, one.min + one.step - 1] if (one := free.get(axis)) else [size + 1]
        for beyond in refused:
            if one is None or (beyond not in one and beyond > 0):
                shape = {**fixed, axis: beyond}
                with pytest.raises((AssertionError, RuntimeError)):
                    run(torch.randn(shape["batch"], 3, shape["height"], shape["width"]))


@pytest.mark.parametrize(
    "layer", [nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.ReflectionPad2d(1)], ids=repr
)
def test_what_takes_no_single_pixel_is_free_from_two_on(layer):
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), layer).double().eval()
    result = repnets.fuse(net, torch.zeros(1, 4, 12, 12, dtype=torch.float64))
    assert result.report.free == {"batch": FreeSize(1), "height": FreeSize(2), "width": FreeSize(2)}


def test_the_report_tells_which_sizes_are_free():
    report = repnets.fuse(Windows().eval(), torch.zeros(1, 3, 28, 28)).report
    assert report.input_shape == (None, 3, None, None)
    assert report.free["height"] == FreeSize(7, 7)
    assert report.to_dict()["free"]["width"] == {"min": 7, "step": 7}


def test_a_network_as_one_captures_it_again_takes_the_same_sizes():
    model = Windows().eval()
    once = capture(model, torch.zeros(1, 3, 28, 28))
    again = capture(_evaluated(once), torch.zeros(1, 3, 14, 14))
    assert free_sizes(again) == free_sizes(once)


def test_a_program_made_of_another_takes_no_more_sizes(tmp_path):
    class Flexible(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu()

    program = capture(Flexible().eval(), torch.zeros(2, 3, 16, 12))
    narrow_sizes(program, {0: FreeSize(2, 2), 2: FreeSize(4, 3)})
    program = saved(program, tmp_path)
    assert free_sizes(program) == {0: FreeSize(2, 2), 2: FreeSize(4, 3)}
    run = program.module()
    assert run(torch.zeros(4, 3, 7, 12)).shape == (4, 3, 7, 12)
    for shape in ((3, 3, 7, 12), (4, 3, 8, 12), (4, 3, 7, 13), (4, 3, 1, 12)):
        with pytest.raises(AssertionError, match="Guard failed"):
            run(torch.zeros(shape))


def _evaluated(program: torch.export.ExportedProgram) -> nn.Module:
    module = program.module()
    for one in module.modules():
        one.training = False
    return module


class Centred(nn.Module):
    """Writes what it keeps anew at each call, as super-resolution networks do with the mean of their data."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.mean = nn.Conv2d(3, 3, 3), torch.ones(1, 3, 1, 1, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean, self.seen, self.last = self.mean.type_as(x), self.seen + x.mean(), x
        return self.c(x - self.mean)


def test_calls_without_numbers_leave_none_in_the_model():
    model = Centred()
    mean, seen = model.mean, model.seen
    calls = calls_at(model, (2, 3, 9, 9), torch.zeros(1, 3, 8, 8), dry=True)
    assert [call.name for call in calls][-1] == "conv2d"
    assert model.mean is mean and model.seen is seen and not hasattr(model, "last")
