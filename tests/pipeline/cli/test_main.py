"""The command `repnets`: what it lists, what it writes, and what it says to a mistake."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import repnets
from pipeline.cli import main
from pipeline.models import checkpoints
from repnets.checkpoints.layouts import convert, recognise, shapes

PROJECT = Path(__file__).resolve().parents[3]


def run(*words: object) -> int:
    return main.main([str(word) for word in words])


def weights(path: Path, arch: str, naming: str, form: str = "training") -> dict[str, torch.Tensor]:
    """A .pth of a network in some layout, with random values; its tensors."""
    generator = torch.Generator().manual_seed(0)
    ours = {name: torch.rand(shape, generator=generator) for name, shape in shapes(arch, form, 10).items()}
    state = convert(ours, arch, naming)
    torch.save(state, path)
    return state


def test_the_networks_are_listed(capsys):
    assert run("models") == 0
    head, *rows = (re.split(r"  +", line) for line in capsys.readouterr().out.splitlines())
    assert head == ["network", "task", "smallest image", "layouts"]
    assert [row[0] for row in rows] == repnets.list_models()
    assert ["repvgg_a0", "classification", "32 x 32", "repnets, official, timm"] in rows
    assert ["toy", "classification", "4 x 4", "repnets"] in rows
    assert ["toy_detector", "detection", "16 x 16", "repnets"] in rows


def test_their_parameters_are_counted(capsys):
    assert run("models", "--parameters") == 0
    rows = {row[0]: row[3:5] for row in (re.split(r"  +", line) for line in capsys.readouterr().out.splitlines())}
    assert rows["repvgg_a0"] == ["9,108,968", "8,309,384"]
    assert rows["mobileone_s4"] == ["14,951,248", "14,838,352"]
    assert rows["resnet18_dbb"][1] == "-"  # how it folds is not in a table


def test_listing_needs_no_torch():
    code = "import sys; from pipeline.cli import main; main.main(['models']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", ["init", "export", "fuse", "convert", "models", "check", "bench"])
def test_help_teaches(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        run(command, "--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    if command == "convert":
        for word in ("checkpoint.safetensors", "fused.pt2", "official-deploy", "examples:", "no code in it runs"):
            assert word in said
    if command in ("check", "bench"):
        for word in ("examples:", ".mlpackage", "Exit code 0", "--json", "--image-size"):
            assert word in said
    assert max(map(len, said.splitlines())) <= 120


def test_a_reader_that_has_enough_ends_a_command_without_a_traceback():
    command = f"{sys.executable} -u -m pipeline.cli.main models --parameters | head -c 1 >/dev/null"
    done = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"repnets {metadata.version('repnets')}\n"


def test_a_command_that_there_is_not_gets_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        run("modles", "--parameters")
    assert ended.value.code == 2
    assert "there is no command `modles`; did you mean `models`?" in capsys.readouterr().err


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["official", "timm", "repnets"])
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_there_and_back_is_exact_to_the_bit(tmp_path, layout, form, capsys):
    given = weights(tmp_path / "given.pth", "mobileone_s1", "official", form)
    named = layout if form == "training" or layout == "repnets" else f"{layout}-deploy"
    assert run("convert", tmp_path / "given.pth", tmp_path / "there.safetensors", "--layout", named) == 0
    assert f"there.safetensors: mobileone_s1, {layout} layout, {form} form" in capsys.readouterr().out
    there = load_file(tmp_path / "there.safetensors")
    assert (recognise(there).naming, recognise(there).form) == (layout, form)
    back = "official" if form == "training" else "official-deploy"
    assert run("convert", tmp_path / "there.safetensors", tmp_path / "back.pth", "--layout", back) == 0
    got = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(got) == list(given)
    assert all(torch.equal(got[name], given[name]) for name in given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "given.pth", "there.safetensors"]


def test_what_this_pipeline_built_is_read(artifacts, tmp_path):
    """The network is in the header, the lineage."""
    assert run("convert", artifacts.checkpoint, tmp_path / "branched.pth", "--layout", "repnets") == 0
    state, _ = checkpoints.read(artifacts.checkpoint)
    got = torch.load(tmp_path / "branched.pth", weights_only=True)
    assert got.keys() == state.keys() and all(torch.equal(got[name], state[name]) for name in state)
    assert run("convert", artifacts.fused, tmp_path / "fused.safetensors", "--layout", "repnets") == 0
    got, want = load_file(tmp_path / "fused.safetensors"), torch.export.load(artifacts.fused).state_dict
    assert {name: tuple(tensor.shape) for name, tensor in got.items()} == {
        name: tuple(shape) for name, shape in shapes("toy", "deploy", 10).items()
    }
    assert torch.equal(got["stage2.weight"], want["stage2.weight"])


@pytest.mark.slow
def test_a_network_with_branches_is_folded_on_the_way_to_a_deploy_layout(tmp_path, randomise):
    model = randomise(repnets.create_model("mobileone_s1", num_classes=10)).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    assert run("convert", tmp_path / "mine.pth", tmp_path / "deploy.pth", "--layout", "official-deploy") == 0
    got = torch.load(tmp_path / "deploy.pth", weights_only=True)
    fused = repnets.fuse(model, torch.zeros(1, 3, 64, 64)).module
    want = convert(convert(fused.state_dict(), "mobileone_s1"), "mobileone_s1", "official")
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def error(capsys, *words: object) -> str:
    """What is said to a mistake: one paragraph, and exit code 2."""
    assert run("convert", *words) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


def test_branches_cannot_be_won_back(tmp_path, capsys):
    weights(tmp_path / "mine.pth", "repvgg_a0", "timm", "deploy")
    said = error(capsys, tmp_path / "mine.pth", tmp_path / "out.pth", "--layout", "official")
    assert "mine.pth was folded already" in said and "Choose `--layout official-deploy`" in said
    assert not (tmp_path / "out.pth").exists()


def test_what_is_missing_is_named(tmp_path, capsys):
    state = weights(tmp_path / "mine.pth", "repvgg_a0", "official")
    del state["linear.bias"]
    torch.save(state, tmp_path / "mine.pth")
    words = [tmp_path / "mine.pth", tmp_path / "out.pth", "--layout", "timm"]
    assert "mine.pth: these are official training weights, but of no network that repnets has" in error(capsys, *words)
    said = error(capsys, *words, "--arch", "repvgg_a0")
    assert "mine.pth: These official training weights are not those of `repvgg_a0`: `linear.bias` is missing" in said


def test_a_layout_that_the_network_has_not(artifacts, tmp_path, capsys):
    said = error(capsys, artifacts.checkpoint, tmp_path / "out.pth", "--layout", "official")
    assert "There is no network `toy` with a layout `official`. Networks with one: repvgg_a0, " in said


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("none.pth", "out.pth", "none.pth does not exist"),
        ("none.pt2", "out.pth", "none.pt2 does not exist. Build it first: snakemake "),
        ("text.pth", "out.pth", "text.pth is no checkpoint, or was cut short"),
        ("text.pt2", "out.pth", "text.pt2 is no torch.export program, or was cut short"),
        ("other.pth", "out.pth", "other.pth: None of the 1 keys is of a layout that is known here"),
        ("other.pth", "out.onnx", "out.onnx is none of .safetensors, .pth, .pt"),
        ("other.pth", "no/out.pth", "there is no folder "),
    ],
)
def test_a_mistake_is_said_in_one_paragraph(tmp_path, capsys, source, output, message):
    for name in ("text.pth", "text.pt2"):
        (tmp_path / name).write_text("text")
    torch.save({"layer1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert message in error(capsys, tmp_path / source, tmp_path / output, "--layout", "repnets")


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert run("convert", tmp_path / "none.pth", tmp_path / "out.pth", "--layout", "timm", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path, capsys):
    weights(tmp_path / "mine.pth", "mobileone_s1", "official")
    (tmp_path / "out.pth").mkdir()
    said = error(capsys, tmp_path / "mine.pth", tmp_path / "out.pth", "--layout", "timm")
    assert "out.pth cannot be written: Is a directory. Name another place." in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pth", "out.pth"]


def test_the_command_is_installed():
    import tomllib

    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"repnets": "pipeline.cli.main:main"}


def test_a_safetensors_file_of_others(tmp_path):
    state = weights(tmp_path / "given.pth", "repvgg_a0", "timm")
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "given.safetensors")
    assert run("convert", tmp_path / "given.safetensors", tmp_path / "out.pt", "--layout", "repnets") == 0
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    assert got.keys() == shapes("repvgg_a0").keys()
