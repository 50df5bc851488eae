"""The stage `quantize` on a toy network: what it writes, what it repairs, and what it refuses."""

import json
import shutil

import pytest
import torch
from torch import nn

import repnets
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.config.stages import QuantizeSettings
from pipeline.errors import GateError, InputError
from pipeline.models import program_file, programs
from pipeline.stages import quantize
from repnets.batch_norms import recalibrated
from repnets.fusion.capture import capture
from repnets.networks.blocks import RepVGGBlock
from tests.fixtures.documents import rebind


def make(artifacts, folder, fused=None, **settings):
    """For another `fused` than the proof is of, the proof is made to fit."""
    folder.mkdir(exist_ok=True)
    proof = shutil.copy(artifacts.verify, folder / "verify.json")
    rebind(VerifyResult, proof, fused=fused or artifacts.fused, split=artifacts.split)
    quantize.run(
        QuantizeSettings(**{"calibration_images": 128, "max_metric_drop": 1.0, **settings}),
        fused=fused or artifacts.fused,
        verify=proof,
        split=artifacts.split,
        quantized=folder / "quantized.pt2",
        report=folder / "quantize.json",
    )
    return folder / "quantized.pt2", json.loads((folder / "quantize.json").read_text())


@pytest.fixture(scope="module")
def quantized(artifacts, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("quantized")
    patch.setenv("REPNETS_STORE", str(folder / "store"))
    try:
        yield make(artifacts, folder)
    finally:
        patch.undo()


class TwoReaders(nn.Module):
    """A layer that two others read, so that its channels cannot be scaled for one alone; trainable."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = RepVGGBlock(3, 24, 2), RepVGGBlock(24, 24)
        self.second, self.third = RepVGGBlock(24, 24), nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        y = self.first(self.stem(x))
        return self.head((self.second(y) + self.third(y)).relu().mean((2, 3)))


def spread(block, readers, powers=3):
    """Give a block's channels ranges of 1 to 10^powers by the gains of its batch norms; the readers undo it.

    The network computes the same, since a ReLU passes any positive factor.
    """
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    by = torch.logspace(-powers / 2, powers / 2, 24)[order]
    with torch.no_grad():
        for norm in block.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight *= by
                norm.bias *= by
        for reader in readers:
            for name, module in reader.named_modules():
                if isinstance(module, nn.Conv2d):
                    module.weight /= by.view(1, -1, 1, 1)
                if isinstance(module, nn.BatchNorm2d) and "identity" in name:
                    module.running_mean *= by
                    module.running_var *= by.square()


def fused_of(network, artifacts, folder, spread_out):
    """A network trained for some seconds, its ranges spread, fused."""
    from pipeline.artifacts.manifest import Preprocessing, read_json
    from pipeline.data import splits

    preprocessing = Preprocessing.from_dict(read_json(artifacts.verify)["preprocessing"])
    batches = list(splits.open_split(artifacts.split).batches("train", preprocessing, 64))
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for images, labels in batches * 8:
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network = recalibrated(network, [images for images, _ in batches])
    images = batches[0][0]
    with torch.no_grad():
        want = network(images)
        spread_out(network)
        torch.testing.assert_close(network(images), want, rtol=0.1, atol=0.1)
    example = torch.zeros(2, *images.shape[1:])
    torch.export.save(capture(repnets.fuse(network, example).module, example), folder / "fused.pt2")
    return folder / "fused.pt2"


@pytest.fixture(scope="module")
def collapsing(artifacts, tmp_path_factory):
    """Fused RepVGG blocks with identity branches whose batch norms have wide gains: int8 ruins it."""
    torch.manual_seed(3)
    network = nn.Sequential(
        RepVGGBlock(3, 24, 2), *[RepVGGBlock(24, 24) for _ in range(3)], nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 10),
    )  # fmt: skip

    def spread_out(network):
        for place in (0, 1, 2):
            spread(network[place], [network[place + 1]])

    return fused_of(network, artifacts, tmp_path_factory.mktemp("collapsing"), spread_out)


@pytest.fixture(scope="module")
def not_equalizable(artifacts, tmp_path_factory):
    """The same trouble where equalization cannot help."""
    torch.manual_seed(3)
    return fused_of(
        TwoReaders(),
        artifacts,
        tmp_path_factory.mktemp("not_equalizable"),
        lambda network: spread(network.first, [network.second, network.third], powers=2.8),
    )


def test_the_program_holds_int8_weights_and_reads_as_any_other(quantized):
    file, report = quantized
    program, lineage = program_file.read(file)
    tensors = [*program.state_dict.values(), *program.constants.values()]
    weights = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.dtype is torch.int8]
    assert len(weights) == 4 == len(report["layers"])
    assert all(int(weight.min()) >= -127 for weight in weights)
    assert lineage["fused"] == report["lineage"]["fused"]
    assert lineage["int8"]["digest"] == report["calibration"]["digest"]
    assert programs.input_shapes(program) == [(None, 3, None, None)]
    every = {"min": 1, "step": 1}
    assert lineage["free"] == report["lineage"]["free"] == {"batch": every, "height": every, "width": every}
    run = torch.export.load(file).module()
    for shape in ((1, 3, 32, 32), (2, 3, 1, 40)):
        assert run(torch.randn(shape)).shape[0] == shape[0]


def test_the_report_says_by_what_and_with_which_images(quantized):
    report = quantized[1]
    assert report["calibration"]["images"] == 128 and report["calibration"]["part"] == "train"
    assert report["scheme"]["weights"]["granularity"] == "output channel"
    assert report["scheme"]["activations"]["range"].split()[0] in ("max", "percentile", "mse")
    assert [step["name"] for step in report["steps"]] == [
        "naive, one scale a weight", "naive, one scale a channel", "range setting", "equalization",
        "rounding together", "bias correction",
    ]  # fmt: skip
    kept = [step["error"] for step in report["steps"] if step["kept"]]
    assert kept == sorted(kept, reverse=True)
    assert report["in_float"] == {"layers": [], "operations": {}}


def test_the_accuracy_is_that_of_the_program_on_the_validation_images(quantized, artifacts):
    from pipeline.artifacts.manifest import Preprocessing, read_json
    from pipeline.data import splits
    from pipeline.models.accuracy import scorer

    file, report = quantized
    module = programs.as_module(program_file.read(file)[0])
    preprocessing = Preprocessing.from_dict(read_json(artifacts.verify)["preprocessing"])
    score = scorer(module, splits.open_split(artifacts.split), preprocessing)
    assert score(module) == report["accuracy"]["quantized"]


def test_the_accuracy_of_a_step_is_that_of_biases_as_runtimes_hold_them(artifacts):
    from pipeline.artifacts.manifest import Preprocessing, read_json
    from pipeline.data import splits
    from pipeline.quantization import pt2e, ptq
    from repnets.quantization.ranges import bias_step

    preprocessing = Preprocessing.from_dict(read_json(artifacts.verify)["preprocessing"])
    images = [batch for batch, _ in splits.open_split(artifacts.split).batches("train", preprocessing, 64)][:1]

    def off(simulation):
        steps = [bias_step(layer.input_rounding.scale, layer.weight_rounding.scale) for layer in simulation.layers]
        biases = [layer.bias.double() / step for layer, step in zip(simulation.layers, steps, strict=True)]
        return max(float((bias - bias.round()).abs().max()) for bias in biases)

    seen = []

    def accuracy(simulation):
        seen.append(off(simulation))
        return 1.0

    network = pt2e.network(program_file.read(artifacts.fused)[0])
    done = ptq.repair(network, images, accuracy, ptq.Limits(max_metric_drop=1.0, max_float_layers=0))
    assert len(seen) == 1 + len(done.steps) and max(seen[1:]) < 0.01  # the first is that of the float network
    assert off(done.simulation) > 0.1  # a step goes on from what it was, not from what was measured


def without_digests(report):
    return {key: value for key, value in report.items() if key not in ("subjects", "digest")}


def test_the_same_calibration_gives_the_same_weights_and_scales(quantized, artifacts, tmp_path, monkeypatch):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "another"))
    again, report = make(artifacts, tmp_path / "again")
    (first, _), (second, _) = program_file.read(quantized[0]), program_file.read(again)
    assert without_digests(report) == without_digests(quantized[1])  # a .pt2 is not the same to the byte
    assert first.graph_module.code == second.graph_module.code  # the scales of the activations stand in it
    for one, other in ((first.state_dict, second.state_dict), (first.constants, second.constants)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_calibration_images_give_another_digest(quantized, artifacts, tmp_path):
    report = make(artifacts, tmp_path / "more", calibration_images=192)[1]
    assert report["calibration"]["digest"] != quantized[1]["calibration"]["digest"]


@pytest.mark.slow
def test_a_network_that_collapses_is_brought_back_and_the_log_says_by_which_step(
    collapsing, artifacts, tmp_path, capsys
):
    report = make(artifacts, tmp_path / "mended", fused=collapsing, max_metric_drop=0.01)[1]
    naive, by_channel, _, equalized, *_ = report["steps"]
    fused = report["accuracy"]["fused"]
    assert fused > 0.85
    assert naive["accuracy"] < fused - 0.2 and by_channel["accuracy"] < fused - 0.05
    assert equalized["name"] == "equalization" and equalized["accuracy"] > fused - 0.02
    assert report["accuracy"]["quantized"] >= fused - 0.01
    assert report["in_float"]["layers"] == []
    assert f"equalization ({equalized['how']})" in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_equalized_is_kept_in_float_and_the_reason_given(not_equalizable, artifacts, tmp_path):
    report = make(artifacts, tmp_path / "float", fused=not_equalizable, max_metric_drop=0.01)[1]
    assert report["steps"][-1]["name"] == "layers in float"
    assert 1 <= len(report["in_float"]["layers"]) <= 4
    assert "alone in int8 it moves the logits by" in report["in_float"]["layers"][0]["reason"]
    assert report["accuracy"]["quantized"] >= report["accuracy"]["fused"] - 0.01
    assert len(report["layers"]) + len(report["in_float"]["layers"]) == 5


@pytest.mark.slow
def test_a_gate_that_cannot_be_held_says_what_was_reached_and_what_to_try(not_equalizable, artifacts, tmp_path):
    with pytest.raises(GateError) as failed:
        make(artifacts, tmp_path / "no", fused=not_equalizable, max_metric_drop=0.0, max_float_layers=0)
    text = str(failed.value)
    assert "in int8 it is right on" in text and "allowed is a drop of 0.00% (quantize.max_metric_drop)" in text
    assert "The layers that lose most" in text and "`quantize.qat_epochs` above 0" in text
    assert [path.name for path in (tmp_path / "no").iterdir()] == ["verify.json"]  # what `make` put there


@pytest.mark.slow
def test_int8_that_is_only_tried_may_lose_and_says_so(not_equalizable, artifacts, tmp_path, capsys):
    settings = {"max_metric_drop": 0.0, "max_float_layers": 0, "may_lose": True}
    program, report = make(artifacts, tmp_path / "tried", fused=not_equalizable, **settings)
    assert report["status"] == "lost" and "in int8 it is right on" in report["reason"]
    assert report["accuracy"]["quantized"] < report["accuracy"]["fused"]
    assert "lost: " in capsys.readouterr().out
    assert programs.count(program_file.read(program)[0])["int8"] == len(report["layers"])


@pytest.mark.slow
def test_training_in_int8_is_the_last_resort_and_is_kept_where_it_helps(not_equalizable, artifacts, tmp_path):
    training = {"max_float_layers": 0, "qat_epochs": 6, "qat_learning_rate": 0.003}
    settings = {"max_metric_drop": 0.0, "may_lose": True} | training  # what it reaches is not all that float has
    report = make(artifacts, tmp_path / "trained", fused=not_equalizable, **settings)[1]
    *_, before, trained = report["steps"]
    assert trained["name"] == "training in int8"
    assert trained["error"] < 0.8 * before["error"]  # it learns the logits; two classes more or less are luck
    reached, had = ((step["accuracy"], -step["error"]) for step in (trained, before))
    assert trained["kept"] == (reached > had)
    assert report["accuracy"]["quantized"] == pytest.approx(max(reached, had)[0], abs=0.003)  # an image


def test_few_images_are_warned_about(artifacts, tmp_path, capsys):
    make(artifacts, tmp_path / "few", calibration_images=8)
    assert "warning: 8 images are few to take ranges from" in capsys.readouterr().err


def test_no_training_image_is_an_error(artifacts, tmp_path):
    from pipeline.data import splits

    split = splits.open_split(artifacts.split)
    empty = splits.new_split(
        split.name, split.root, split.classes, split.sources, split.labels, {"train": (), "val": split.parts["val"]}
    )
    copied = tmp_path / "toy"
    shutil.copytree(artifacts.folder / "toy", copied)
    splits.write_split(tmp_path / "split.json", empty)
    with pytest.raises(InputError, match="the train part of the split holds no image"):
        make(type(artifacts)(tmp_path), tmp_path / "out")


def test_a_network_of_other_images_is_an_error(artifacts, tmp_path):
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    torch.export.save(capture(grey, torch.zeros(2, 1, 32, 32)), tmp_path / "grey.pt2")
    with pytest.raises(InputError, match=r"does not take the calibration images, of shape \(1, 3, 32, 32\)"):
        make(artifacts, tmp_path / "out", fused=tmp_path / "grey.pt2")


def test_a_second_run_comes_from_the_store(quantized, artifacts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPNETS_STORE", str(quantized[0].parent / "store"))
    make(artifacts, tmp_path / "second")
    assert "quantize: from the store" in capsys.readouterr().out
