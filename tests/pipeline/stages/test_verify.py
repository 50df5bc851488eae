"""The gate between branched and fused: what it proves, and what it catches."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from pipeline.config.project import Verify
from pipeline.config.stages import ExportSettings, NoSettings
from pipeline.errors import GateError, InputError
from pipeline.models import checkpoints, networks
from pipeline.stages import command, export, reparameterize, verify


def run_verify(artifacts, tmp_path, settings=None, **changes):
    paths = {
        "checkpoint": artifacts.checkpoint,
        "split": artifacts.split,
        "fused": artifacts.fused,
        **changes,
    }
    verify.run(settings or Verify(), **paths, output=tmp_path / "verify.json")


def change_program(artifacts, path, change):
    """Save fused.pt2 with its weights changed in place by `change(state_dict)`."""
    program = torch.export.load(artifacts.fused)
    change(program.state_dict)
    torch.export.save(program, path)
    return path


def test_what_is_written(artifacts):
    proved = json.loads(artifacts.verify.read_text())
    assert proved["images"] == 359
    assert proved["agreement"] == 1.0
    assert proved["idempotent"] is True
    assert proved["accuracy"]["branched"] == proved["accuracy"]["fused"]
    assert set(proved["float64"]["max_relative_error"]) == {
        "random 32 x 32", "random 33 x 33", "random 48 x 48", "real 32 x 32",
    }  # fmt: skip
    assert 0 < max(proved["float64"]["max_relative_error"].values()) < 1e-12
    assert 0 < proved["float32"]["rounding"] < 1e-3


def test_a_network_that_takes_one_size_alone_is_compared_at_that_size(artifacts, own_modules, tmp_path, capsys):
    own_modules(
        {
            "tied": """
                from torch import nn
                from repnets.networks.blocks import RepVGGBlock

                def build(num_classes):
                    return nn.Sequential(RepVGGBlock(3, 8, stride=4), nn.Flatten(), nn.Linear(8 * 8 * 8, num_classes))
            """
        }
    )
    _, header = checkpoints.read(artifacts.checkpoint)
    path, fused = tmp_path / "checkpoint.safetensors", tmp_path / "fused.pt2"
    torch.manual_seed(0)
    model = networks.build("tied:build", 10)
    model(3 * torch.randn(16, 3, 32, 32))
    checkpoints.write(path, model.state_dict(), replace(header, arch="tied:build"))
    reparameterize.run(NoSettings(), checkpoint=path, split=artifacts.split, fused=fused, report=tmp_path / "fuse.json")
    assert json.loads((tmp_path / "fuse.json").read_text())["after"]["convolutions"] == 1
    run_verify(artifacts, tmp_path, checkpoint=path, fused=fused)
    proved = json.loads((tmp_path / "verify.json").read_text())
    assert set(proved["float64"]["max_relative_error"]) == {"random 32 x 32", "real 32 x 32"}
    assert "verify: the network does not take 33 x 33 pixels, so it is not compared there" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"`tied:build` does not run on images of 48 x 48 pixels: .*Guard failed"):
        export.run(
            ExportSettings(
                target="phone", model="tied", backend="executorch", precision="fp32", forms=("fused",),
                batch=1, image_size=48, options={},
            ),
            checkpoint=path,
            fused=fused,
            verify=tmp_path / "verify.json",
            manifest=tmp_path / "manifest.json",
        )  # fmt: skip


@pytest.fixture(params=["register_buffer", "__setattr__"])
def sharing(request, artifacts, own_modules, tmp_path):
    """Paths of the checkpoint and the fuse of a network in which three modules have one tensor."""
    own_modules(
        {
            "shares": f"""
                import torch
                from torch import nn
                from repnets.networks.blocks import RepVGGBlock

                class Head(nn.Module):
                    def __init__(self, grid):
                        super().__init__()
                        self.conv = nn.Conv2d(8, 4, 1)
                        self.{request.param}("grid", grid)

                    def forward(self, x):
                        return self.conv(x) * self.grid

                class Detector(nn.Module):
                    def __init__(self):
                        super().__init__()
                        grid = torch.linspace(1, 2, 64).view(8, 8)
                        self.body = RepVGGBlock(3, 8, stride=4)
                        self.boxes, self.scores = Head(grid), Head(grid)
                        self.{request.param}("grid", grid)
                        self.last = nn.Linear(8, 10)

                    def forward(self, x):
                        x = self.body(x)
                        return self.last(torch.cat([self.boxes(x), self.scores(x)], 1).sigmoid().mean((2, 3)))

                    def _apply(self, function, recurse=True):  # as packages do whose tensors are no buffers
                        super()._apply(function, recurse)
                        self.boxes.grid = function(self.boxes.grid)
                        return self

                def build(num_classes):
                    return Detector()
            """
        }
    )
    _, header = checkpoints.read(artifacts.checkpoint)
    path, fused = tmp_path / "checkpoint.safetensors", tmp_path / "fused.pt2"
    torch.manual_seed(0)
    checkpoints.write(path, networks.build("shares:build", 10).state_dict(), replace(header, arch="shares:build"))
    reparameterize.run(NoSettings(), checkpoint=path, split=artifacts.split, fused=fused, report=tmp_path / "fuse.json")
    return {"checkpoint": path, "fused": fused}


def test_a_tensor_that_modules_share_has_one_name(artifacts, sharing, tmp_path):
    run_verify(artifacts, tmp_path, **sharing)
    names = [name for name in torch.export.load(sharing["fused"]).state_dict if "grid" in name]
    assert len(names) == 1


def test_a_change_of_a_tensor_that_modules_share_is_caught(artifacts, sharing, tmp_path):
    program = torch.export.load(sharing["fused"])
    name = next(name for name in program.state_dict if "grid" in name)
    program.state_dict[name][3, 5] += 1e-3
    torch.export.save(program, sharing["fused"])
    with pytest.raises(GateError, match=rf"is not the fold of its checkpoint: {name}\[3, 5\] is 1\.46"):
        run_verify(artifacts, tmp_path, **sharing)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_weight_off_by_a_thousandth_is_caught_and_its_layer_named(artifacts, tmp_path, layer):
    names = [name for name, tensor in torch.export.load(artifacts.fused).state_dict.items() if tensor.dim() == 4]

    def change(state):
        state[names[layer]][1, 0, 1, 1] += 1e-3

    damaged = change_program(artifacts, tmp_path / "fused.pt2", change)
    with pytest.raises(GateError) as caught:
        run_verify(artifacts, tmp_path, fused=damaged)
    path = names[layer].removesuffix(".weight")
    assert f"layer {path} of fused.pt2 is not the fold of its checkpoint" in str(caught.value)
    assert f"{names[layer]}[1, 0, 1, 1]" in str(caught.value)
    assert not (tmp_path / "verify.json").exists()


def test_a_nan_in_a_weight_is_caught(artifacts, tmp_path):
    def change(state):
        next(tensor for tensor in state.values() if tensor.dim() == 4)[0, 0, 0, 0] = float("nan")

    damaged = change_program(artifacts, tmp_path / "fused.pt2", change)
    with pytest.raises(GateError, match="is not the fold of its checkpoint"):
        run_verify(artifacts, tmp_path, fused=damaged)


def test_the_fuse_of_another_checkpoint_is_caught(artifacts, tmp_path):
    state, header = checkpoints.read(artifacts.checkpoint)
    name = next(name for name in state if name.endswith("running_mean"))
    state[name] = state[name] + 0.01
    other = tmp_path / "checkpoint.safetensors"
    checkpoints.write(other, state, header)
    with pytest.raises(GateError, match="is not the fold of its checkpoint"):
        run_verify(artifacts, tmp_path, checkpoint=other)


def test_a_program_of_other_layers_is_caught(artifacts, tmp_path):
    model, _ = checkpoints.load_model(artifacts.checkpoint)
    branched = tmp_path / "fused.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 32, 32),)), branched)
    with pytest.raises(GateError, match=r"fused\.pt2 and the fold of its checkpoint differ in"):
        run_verify(artifacts, tmp_path, fused=branched)


def test_a_graph_that_was_changed_while_its_weights_are_right_is_caught(artifacts, tmp_path):
    program = torch.export.load(artifacts.fused)
    relu = next(node for node in program.graph.nodes if "relu" in str(node.target))
    relu.replace_all_uses_with(relu.args[0])
    changed = tmp_path / "fused.pt2"
    torch.export.save(program, changed)
    with pytest.raises(GateError, match="float32: on random 32 x 32 input the fused program is"):
        run_verify(artifacts, tmp_path, fused=changed)


def test_the_float64_tolerance_is_held(artifacts, tmp_path):
    with pytest.raises(GateError, match=r"float64: branched and fused differ by .* the worst layer by itself is"):
        run_verify(artifacts, tmp_path, Verify(float64_tolerance=1e-30))


def test_a_failed_gate_leaves_the_former_result(artifacts, tmp_path):
    shutil.copy(artifacts.verify, tmp_path / "verify.json")
    with pytest.raises(GateError):
        run_verify(artifacts, tmp_path, Verify(float64_tolerance=1e-30))
    assert (tmp_path / "verify.json").read_text() == artifacts.verify.read_text()


def test_from_the_command_line_a_failed_gate_ends_with_1(artifacts, tmp_path, capsys):
    arguments = {
        "settings": Verify(float64_tolerance=1e-30).model_dump_json(),
        "checkpoint": artifacts.checkpoint,
        "split": artifacts.split,
        "fused": artifacts.fused,
        "output": tmp_path / "verify.json",
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    assert command.main(verify.run, words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: float64: branched and fused differ")
    assert "Traceback" not in error
