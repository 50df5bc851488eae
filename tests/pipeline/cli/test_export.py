"""`repnets export`: a real network through two targets, one refused at first; and what it refuses at once."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import repnets
from pipeline.artifacts import documents, failures
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.failures import Failures
from pipeline.cli import export, main, sources
from pipeline.config import yaml_file

PROJECT = Path(__file__).resolve().parents[3]
IMPOSSIBLE = "check: {tolerance: 1.0e-30}\n"


def run(*words: object) -> int:
    return main.main(["export", *map(str, words)])


def error(capsys, *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    return capsys.readouterr().err


def in_a_process(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it: Snakemake writes to the process's own stdout."""
    command = [sys.executable, "-m", "pipeline.cli.main", "export", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_one_refusal_costs_only_itself_and_the_next_run_goes_on(artifacts, tmp_path, monkeypatch):
    """The refused file is the one whose target.yaml demands what no arithmetic gives."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copy(artifacts.checkpoint, tmp_path / "mine.safetensors")
    place = tmp_path / "mine-export" / "targets" / "executorch"
    place.mkdir(parents=True)
    text = export._targets(["executorch"], False)["executorch"]
    (place / "target.yaml").write_text(text + IMPOSSIBLE)
    words = ("mine.safetensors", "--to", "executorch,coreml", "--int8")

    first = in_a_process(tmp_path, *words)
    assert first.returncode == 1, first.stderr
    for said in ("FAILED  checking the executorch files of toy", "done    checking the coreml files of toy",
                 "REFUSED  executorch\n", "REFUSED  coreml-int8\n", "tolerance for fp32 is 1e-30",
                 "log: mine-export/logs/toy/executorch/check.log", "6 convolutions folded to 3",
                 "logs/snakemake.log"):  # fmt: skip
        assert said in first.stdout
    assert "3 of 4 refused: executorch, executorch-int8, coreml-int8." in first.stderr
    made = tmp_path / "mine-export" / "targets"
    assert documents.read(CheckResult, made / "coreml/toy/check.json").status == "ok"
    assert not (made / "executorch/toy/check.json").exists()
    told = documents.read(Failures, tmp_path / "mine-export" / failures.PLACE)
    assert [(job.stage, job.model, job.target) for job in told.jobs] == [("check", "toy", "executorch")]
    assert told.unfinished == ("targets/executorch/toy/check.json",)

    (place / "target.yaml").write_text(text)
    again = in_a_process(tmp_path, *words[:-1])
    assert again.returncode == 0, again.stdout + again.stderr
    begun = [line for line in again.stdout.splitlines() if line.startswith("begins")]
    assert begun == ["begins  checking the executorch files of toy"]
    rows = [line.split() for line in again.stdout.splitlines() if "100.00%" in line]
    assert [row[:2] for row in rows] == [["executorch", "fp32"], ["coreml", "fp16"]]
    assert all((tmp_path / row[-1]).exists() for row in rows)


@pytest.fixture
def not_run(monkeypatch, tmp_path):
    """The folder of the user; Snakemake is not started, and nothing is told of what it would have made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "_run", lambda *_: None)
    monkeypatch.setattr(export, "tell", lambda *_: [])
    return tmp_path


def test_a_changed_option_is_written_unless_the_file_was_edited(artifacts, not_run, capsys):
    config = not_run / "project" / "config.yaml"
    words = (artifacts.checkpoint, "--to", "executorch", "--output", "project")
    assert run(*words) == 0
    assert yaml_file.read(config)["data"]["image_size"] == 32
    assert run(*words, "--size", "48x64") == 0
    assert yaml_file.read(config)["data"]["image_size"] == [48, 64]
    assert "was edited" not in capsys.readouterr().out
    config.write_text(config.read_text().replace("float64_tolerance: 1.0e-9", "float64_tolerance: 1.0e-8"))
    edited = config.read_text()
    assert run(*words, "--size", "48x64") == 0  # the same options: nothing to say
    assert "was edited" not in capsys.readouterr().out
    assert run(*words) == 0
    assert "project/config.yaml was edited, so it is used as it is" in capsys.readouterr().out
    assert config.read_text() == edited


def test_targets_have_no_baseline_and_openvino_is_one(not_run, artifacts):
    assert run(artifacts.checkpoint, "--to", "tensorrt,openvino,coreml-int8", "--output", "project") == 0
    texts = {path.parent.name: yaml.safe_load(path.read_text()) for path in not_run.glob("project/targets/*/*.yaml")}
    assert {name: (one["backend"], one["precision"], one["baseline"]) for name, one in texts.items()} == {
        "tensorrt": ("tensorrt", "fp16", "none"), "openvino": ("openvino", "fp32", "none"),
    }  # fmt: skip
    assert texts["tensorrt"]["options"]["compute_capabilities"]


def test_a_factory_has_its_own_number_of_classes_and_random_weights_are_told(not_run, capsys):
    (not_run / "screws.py").write_text(
        "from torch import nn\n"
        "def build(num_classes=7):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(4, num_classes))\n"
        "def plain(num_classes):\n    return build(num_classes)\n"
    )
    assert run("screws:build", "--to", "executorch") == 0
    said = capsys.readouterr().out
    assert "the weights are RANDOM" in said and "project: build-export" in said
    read = yaml_file.read(not_run / "build-export" / "config.yaml")
    assert read["data"] == {"name": "none", "classes": 7, "image_size": 224}
    weights = (not_run / "build-export" / "random.safetensors").read_bytes()
    assert run("screws:build", "--to", "executorch") == 0
    assert (not_run / "build-export" / "random.safetensors").read_bytes() == weights
    assert "must be told how many classes" in error(capsys, "screws:plain", "--to", "executorch")
    assert run("screws:plain", "--to", "executorch", "--classes", "3") == 0
    torch.save(sources.random_network("screws:build", 5).state_dict(), "five.pth")
    capsys.readouterr()
    assert run("screws:build", "--checkpoint", "five.pth", "--to", "executorch", "--output", "five") == 0
    assert "RANDOM" not in capsys.readouterr().out
    assert yaml_file.read(not_run / "five" / "config.yaml")["data"]["classes"] == 5


def test_a_program_of_this_pipeline_gives_its_weights(not_run, artifacts, capsys):
    assert run(artifacts.fused, "--to", "executorch", "--size", "32") == 0
    assert "toy, repnets layout, deploy form, 10 classes" in capsys.readouterr().out
    given = torch.export.load(artifacts.fused).state_dict
    taken = load_file(not_run / "fused-export" / "fused.safetensors")
    assert taken.keys() == given.keys() and all(torch.equal(taken[name], given[name]) for name in given)
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 3, 8, 8),)), "theirs.pt2")
    said = error(capsys, "theirs.pt2", "--to", "executorch")
    assert "theirs.pt2 holds a graph" in said and "repnets fuse" in said


def test_torchvision_is_named_as_timm_is():
    assert sources.meant("torchvision:resnet18").arch == "torchvision.models:resnet18"
    assert sources._classes("torchvision.models:resnet18") == 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none.pth", "--to", "coreml"), "none.pth does not exist"),
        (("mine.onnx", "--to", "coreml"), "is an ONNX file, which is read to be checked and timed"),
        (("toy", "--to", "corml"), "there is no target `corml`; did you mean `coreml`?"),
        (("repvgg_aO", "--to", "coreml"), "did you mean `repvgg_a0`?"),
        (("toy", "--arch", "toy", "--to", "coreml"), "`toy` names a network, and so does --arch toy"),
        (("odd.pth", "--to", "coreml"), "Name its network with --arch"),
        (("odd.pth", "--checkpoint", "x.pth", "--to", "coreml"), "are two files of weights"),
        (("toy", "--to", "coreml", "--calibrate", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_mistakes_build_nothing(words, message, not_run, capsys):
    (not_run / "mine.onnx").touch()
    torch.save(repnets.create_model("repshufflenet_x0_5", num_classes=3).state_dict(), "odd.pth")
    assert message in error(capsys, *words)
    assert not list(not_run.glob("*-export"))
