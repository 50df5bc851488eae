import copy
import json
import math
import pickle
import warnings

import pytest
import torch
from torch import fx, nn

import repnets
from repnets import FuseResult, RepnetsError
from repnets.networks.blocks import RepVGGBlock, SqueezeExcite


class Narrow(nn.Module):
    """Two RepVGG blocks, the second gated, and a plain convolution with its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = RepVGGBlock(3, 16, stride=2)
        self.body = nn.Sequential(RepVGGBlock(16, 16, groups=2, use_se=True))
        self.last = nn.Conv2d(16, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(self.last(self.body(self.stem(x))))
        return {"features": features, "logits": self.head(features.mean((2, 3)))}


@pytest.fixture(scope="module")
def narrow(randomise) -> Narrow:
    torch.manual_seed(0)
    return randomise(Narrow())


@pytest.fixture(scope="module")
def fused(narrow) -> FuseResult:
    return repnets.fuse(narrow, torch.zeros(1, 3, 32, 32))


def equal(a: nn.Module, b: nn.Module, x: torch.Tensor) -> bool:
    with torch.no_grad():
        return all(torch.equal(value, b(x)[key]) for key, value in a(x).items())


def test_the_fused_network_computes_the_same_at_any_batch_and_size(narrow, fused, relative_error):
    exact, module = copy.deepcopy(narrow).double(), copy.deepcopy(fused.module).double()
    assert fused.report.input_shape == (None, 3, None, None)
    for shape in ((1, 3, 32, 32), (3, 3, 32, 32), (1, 3, 47, 20), (2, 3, 2, 2)):
        x = torch.randn(shape)
        with torch.no_grad():
            for key, wanted in exact(x.double()).items():
                rounding = relative_error(narrow(x)[key].double(), wanted)
                assert relative_error(fused.module(x)[key].double(), wanted) < 4 * rounding + 1e-6
                # the weights were rounded to float32 once, and nothing else was lost
                assert relative_error(module(x.double())[key], wanted) < 1e-6


def test_toy_in_float64_is_exact(randomise, relative_error):
    model = randomise(repnets.create_model("toy", num_classes=10)).double()
    x = torch.randn(2, 3, 24, 20, dtype=torch.float64)
    result = repnets.fuse(model, x)
    assert [region.name for region in result.report.regions] == ["stage1", "stage2", "stage3"]
    assert [region.batch_norms for region in result.report.regions] == [2, 2, 3]
    assert result.report.after.parameters == 224522
    assert next(result.module.parameters()).dtype == torch.float64
    with torch.no_grad():
        assert relative_error(result.module(x), model(x)) < 1e-12


def test_the_model_is_left_as_it_was(narrow):
    model = copy.deepcopy(narrow)
    repnets.fuse(model, torch.zeros(1, 3, 32, 32))
    before = narrow.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert list(dict(model.named_modules())) == list(dict(narrow.named_modules()))
    assert equal(model, narrow, torch.randn(1, 3, 32, 32))


def test_the_fused_network_shares_no_memory_with_the_model(narrow):
    model = copy.deepcopy(narrow)
    result = repnets.fuse(model, torch.zeros(1, 3, 32, 32))
    kept = {name: tensor.clone() for name, tensor in result.module.state_dict().items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in result.module.state_dict().items())


def test_names(fused):
    # the gate remains below body.0, so its convolution cannot take that name
    assert [region.name for region in fused.report.regions] == ["stem", "body.0.dense.conv", "last"]
    paths = ("stem", "body.0.dense.conv", "body.0.se.reduce", "body.0.se.expand", "last", "head")
    assert set(fused.module.state_dict()) == {f"{path}.{kind}" for path in paths for kind in ("weight", "bias")}
    assert isinstance(fused.module.get_submodule("stem"), nn.Conv2d)
    assert not any(parameter.requires_grad for parameter in fused.module.parameters())
    assert not any(module.training for module in fused.module.modules())


def test_the_fused_structure_does_not_depend_on_the_weights(fused):
    untrained = repnets.fuse(Narrow().eval(), torch.zeros(1, 3, 32, 32))
    assert {key: tensor.shape for key, tensor in untrained.module.state_dict().items()} == {
        key: tensor.shape for key, tensor in fused.module.state_dict().items()
    }


def test_siblings_in_one_module_are_named_by_their_convolutions(randomise):
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.first_norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.second, self.second_norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second_norm(self.second(self.first_norm(self.first(x)).relu()))

    model = randomise(nn.Sequential(Pair(), nn.ReLU()))
    result = repnets.fuse(model, torch.zeros(1, 4, 16, 16))
    assert [region.name for region in result.report.regions] == ["0.first", "0.second"]


def test_fusing_the_fused_network_folds_nothing_and_changes_no_bit(fused):
    again = repnets.fuse(fused.module, torch.zeros(1, 3, 32, 32))
    assert again.report.regions == ()
    assert again.report.before == again.report.after == fused.report.after
    first, second = fused.module.state_dict(), again.module.state_dict()
    assert sorted(first) == sorted(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert equal(fused.module, again.module, torch.randn(2, 3, 40, 24))


def test_the_fused_network_can_be_copied_pickled_and_captured(fused):
    x = torch.randn(2, 3, 40, 24)
    assert equal(copy.deepcopy(fused.module), fused.module, x)
    assert equal(pickle.loads(pickle.dumps(fused.module)), fused.module, x)
    assert equal(repnets.capture(fused.module, x).module(), fused.module, x)


def test_train_mode_changes_no_result(fused):
    assert equal(copy.deepcopy(fused.module).train(), fused.module, torch.randn(2, 3, 32, 32))


def test_the_report(fused):
    report = fused.report
    assert (report.before.convolutions, report.before.batch_norms, report.before.additions) == (7, 6, 3)
    assert (report.after.convolutions, report.after.batch_norms, report.after.additions) == (5, 0, 0)
    stem, gated, last = report.regions
    assert (stem.kernel_size, stem.stride, stem.padding, stem.dilation) == ((3, 3), (2, 2), (1, 1), (1, 1))
    assert (stem.macs_before, stem.macs_after) == (16 * 3 * 10 * 256, 16 * 3 * 9 * 256)
    assert (stem.parameters_before, stem.parameters_after) == (16 * 3 * 10 + 64, 16 * 3 * 9 + 16)
    assert set(stem.paths) == {
        "stem",
        "stem.dense.conv",
        "stem.dense.bn",
        "stem.pointwise.conv",
        "stem.pointwise.bn",
    }
    assert (gated.groups, gated.convolutions, gated.batch_norms) == (2, 2, 3)
    assert (last.convolutions, last.batch_norms) == (1, 1)
    removed = sum(region.macs_before - region.macs_after for region in report.regions)
    assert report.before.macs - report.after.macs == removed
    assert all(region.error_float64 < 1e-14 < region.error_float32 < 1e-5 for region in report.regions)


def test_the_report_is_json_and_reads_as_a_table(fused):
    loaded = json.loads(json.dumps(fused.report.to_dict()))
    assert loaded["regions"][0]["name"] == "stem"
    assert loaded["after"]["batch_norms"] == 0
    assert set(fused.report.seconds) == {"capture", "analysis", "emission", "check"}
    assert "seconds" not in loaded
    lines = str(fused.report).splitlines()
    before, after = lines[1:3]
    assert before.split()[:5] == ["before", "24", "7", "6", "3"]
    assert after.split()[:5] == ["after", "13", "5", "0", "0"]
    table = lines[4:8]
    assert [line.split()[0] for line in table] == ["convolution", "stem", "body.0.dense.conv", "last"]
    assert len({len(line) for line in table}) == 1


def test_the_report_gives_the_reasons_of_what_is_left(randomise):
    model = randomise(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    text = str(repnets.fuse(model, torch.zeros(1, 3, 8, 8)).report)
    assert "nothing to fold" in text
    assert "left as they are:\n  batch_norm (0): there is no convolution before it to fold it into" in text


def test_a_region_that_cannot_be_rounded_is_left_and_said_loudly(randomise):
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[0].weight.fill_(1e37)
        model[1].weight.fill_(1e3)
    with pytest.warns(RuntimeWarning, match=r"ends at batch_norm \(1\) is left unfused: folding it failed the check"):
        result = repnets.fuse(model, torch.zeros(1, 3, 8, 8))
    assert result.report.regions == ()
    assert [refusal.path for refusal in result.report.refusals] == ["1"]
    x = torch.full((1, 3, 8, 8), 1e-10)
    with torch.no_grad():
        assert torch.equal(result.module(x), model(x))


def test_a_network_of_one_size_is_captured_at_that_size(randomise, relative_error):
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = RepVGGBlock(3, 4), nn.Linear(4 * 8 * 8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.block(x).flatten(1))

    model = randomise(Flat())
    result = repnets.fuse(model, torch.zeros(1, 3, 8, 8))
    assert result.report.input_shape == (None, 3, 8, 8)
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(result.module(x), model(x)) < 1e-5


def test_a_size_that_is_rounded_up_is_fixed_so_that_the_program_can_be_saved(tmp_path):
    class Same(nn.Module):
        """Pads as TensorFlow does."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            missing = (math.ceil(x.shape[-1] / 2) - 1) * 2 + 3 - x.shape[-1]
            return self.layer(nn.functional.pad(x, (0, missing, 0, missing)))

    program = repnets.capture(Same().eval(), torch.zeros(2, 3, 8, 8))
    torch.export.save(program, tmp_path / "same.pt2")
    assert torch.export.load(tmp_path / "same.pt2").module()(torch.zeros(5, 3, 8, 8)).shape == (5, 4, 4, 4)


def test_an_example_of_the_smallest_size_leaves_the_size_free(randomise, relative_error):
    model = randomise(repnets.create_model("toy", num_classes=3))
    program = repnets.capture(model, torch.zeros(1, 3, 4, 4))
    x = torch.randn(3, 3, 50, 31)
    with torch.no_grad():
        assert relative_error(program.module()(x), model(x)) < 1e-5


X = torch.zeros(1, 3, 16, 16)


def broken(**changes: tuple[str, float]) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for value, key in changes.values():
        model.state_dict()[key].view(-1)[0] = value
    return model


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(),
            X,
            r"The model is in training mode, .* Call model\.eval\(\) first",
        ),
        (
            broken(a=(float("nan"), "0.weight")),
            X,
            r"0\.weight holds NaN or infinite values.* load a sound one",
        ),
        (broken(a=(float("inf"), "1.running_mean")), X, r"1\.running_mean holds NaN or infinite"),
        (broken(a=(-1.0, "1.running_var")), X, "The batch norm '1' has a negative running variance, -1"),
        (broken(), X[0], r"The example input has 3 dimensions, \(3, 16, 16\), and the model takes 4: batch"),
        (broken(), X[:, :2], r"does not run on the example input, \(1, 2, 16, 16\) of float32: .*channels"),
        (broken(), X.double(), r"does not run on the example input, \(1, 3, 16, 16\) of float64"),
    ],
)
def test_what_a_user_can_get_wrong_is_said(model, example, message):
    with pytest.raises(RepnetsError, match=message):
        repnets.fuse(model, example)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_network_is_refused():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    eager = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(12, 4))).eval()
    with pytest.raises(RepnetsError, match=r"^1 is quantized already.* quantize what comes out"):
        repnets.fuse(eager, torch.zeros(1, 3, 2, 2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    quantize_(model, Int8WeightOnlyConfig())
    with pytest.raises(RepnetsError, match=r"^1\.weight is quantized already"):
        repnets.fuse(model, torch.zeros(1, 3, 2, 2))


def test_complex_weights_are_refused():
    model = nn.Conv2d(3, 4, 3, dtype=torch.complex64).eval()
    with pytest.raises(RepnetsError, match="weight holds complex numbers"):
        repnets.fuse(model, torch.zeros(1, 3, 8, 8, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_folded_in_float64_and_rounded_once(randomise, dtype):
    model = randomise(nn.Sequential(RepVGGBlock(3, 4, stride=2))).to(dtype)
    result = repnets.fuse(model, torch.zeros(1, 3, 8, 8, dtype=dtype))
    exact = repnets.fuse(copy.deepcopy(model).double(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    for name, tensor in exact.module.state_dict().items():
        assert torch.equal(result.module.state_dict()[name], tensor.to(dtype))


def test_an_inplace_layer_that_matters_stays_so(randomise, relative_error):
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            self.relu(y)
            return y - x  # the rectified y

    model = randomise(Overwriting())
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(repnets.fuse(model, x).module(x), model(x)) < 1e-6


@pytest.mark.parametrize("trace", [fx.symbolic_trace, lambda model: torch.export.export(model, (X,)).module()])
def test_the_flag_of_a_container_that_tracing_made_means_nothing(trace):
    model = broken()
    traced = trace(nn.Sequential(model).eval())
    assert any(module.training for module in traced.modules())
    result = repnets.fuse(traced, X)
    assert result.report.after.batch_norms == 0
    with torch.no_grad():
        assert torch.allclose(result.module(X), model(X), atol=1e-5)


@pytest.mark.parametrize(
    ("option", "message"), [({"cost": "xnnpack"}, "`cost` is 'xnnpack'"), ({"border": "e"}, '"exact"')]
)
def test_an_option_of_another_kind_is_refused(option, message):
    with pytest.raises(RepnetsError, match=message):
        repnets.fuse(broken(), X, **option)


def test_one_layer_in_training_mode_is_named():
    model = broken()
    model[1].train()
    with pytest.raises(RepnetsError, match="The module '1' is in training mode"):
        repnets.fuse(model, X)


def test_a_model_that_branches_on_values_is_refused():
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu() if x.sum() > 0 else x

    with pytest.raises(
        RepnetsError,
        match=r"torch\.export cannot capture the model, at test_engine.py:\d+ \(return .*branches on the values",
    ):
        repnets.capture(Branching().eval(), X)


def test_a_model_that_writes_its_weights_while_it_runs_is_refused():
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.conv.weight.data = 2 * self.wide.weight.data.clone().detach()
            return self.conv(x)

    said = r"the forward of the module '0' computes a tensor and keeps it.* Compute such weights once, before"
    with pytest.raises(RepnetsError, match=said):
        repnets.capture(nn.Sequential(Writing()).eval(), X)
    with pytest.raises(RepnetsError, match="the forward of the model computes a tensor"):
        repnets.capture(Writing().eval(), X)


def test_a_model_that_counts_its_calls_is_refused():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x.relu()

    model = Counting().eval()
    with pytest.raises(RepnetsError, match="changes its own buffer 'calls'"):
        repnets.fuse(model, X)
    assert model.calls == 0


def test_nothing_warns(randomise):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repnets.fuse(randomise(nn.Sequential(RepVGGBlock(3, 4), SqueezeExcite(4, 2))), X)
