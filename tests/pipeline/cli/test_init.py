"""`repnets init`: what it finds out, what it writes, and what it leaves alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import repnets
from pipeline import backends
from pipeline.cli import main
from pipeline.config import yaml_file
from pipeline.models import resolve
from repnets.checkpoints.layouts import convert, shapes

PROJECT = Path(__file__).resolve().parents[3]
TARGETS = ["coreml", "coreml-int8", "executorch", "executorch-int8", "tensorrt", "tensorrt-int8"]


def run(*words: object) -> int:
    return main.main(["init", *map(str, words)])


def loaded(folder: Path):
    """The configuration of a project, as the Snakefile reads it there."""
    return resolve.load(yaml_file.read(folder / "config.yaml"), backends.rules(), folder)


def refused(capsys, *words: object) -> str:
    capsys.readouterr()  # of what was run before
    assert run(*words) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


def picture(path: Path, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).convert(mode).save(path)


@pytest.fixture
def screws(tmp_path) -> Path:
    """A folder of two classes, with a gray picture and one with transparency."""
    root = tmp_path / "Schrauben groß"
    for number in range(3):
        picture(root / "gut" / f"{number}.png")
        picture(root / "Kratzer tief ü" / f"{number}.jpg")
    picture(root / "gut" / "grau.png", mode="L")
    picture(root / "gut" / "alpha.png", mode="RGBA")
    return root


def written(path: Path, arch: str, naming: str, form: str, classes: int, prefix: str = "") -> Path:
    """A checkpoint of random weights in a layout."""
    ours = {name: torch.rand(shape) for name, shape in shapes(arch, form, classes).items()}
    state = {prefix + name: tensor.contiguous() for name, tensor in convert(ours, arch, naming).items()}
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def test_without_options_it_is_the_project_of_the_clone(tmp_path):
    folder = tmp_path / "Mein Projekt"
    assert run(folder) == 0
    assert (folder / "config.yaml").read_text() == (PROJECT / "config.yaml").read_text()
    copied = ["profiles/default/config.yaml", *(f"targets/{name}/target.yaml" for name in TARGETS)]
    for name in copied:
        assert (folder / name).read_bytes() == (PROJECT / name).read_bytes(), name
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "Snakefile", ".gitignore", *copied}
    assert len((folder / "Snakefile").read_text().splitlines()) == 3
    assert list(loaded(folder).targets) == TARGETS
    own = set((folder / ".gitignore").read_text().split())
    assert own == set((PROJECT / ".gitignore").read_text().split()) & own and "/artifacts/" in own


def test_here_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--target", "executorch") == 0
    assert list(loaded(tmp_path).targets) == ["executorch"]


def test_pictures_tell_their_classes_size_and_channels(screws, tmp_path, capsys):
    folder = tmp_path / "project"
    assert run(folder, "--data", screws, "--arch", "toy") == 0
    said = capsys.readouterr().out
    assert "8 pictures in 2 classes (Kratzer tief ü, gut); RGB" in said and "warning" not in said
    read = loaded(folder)
    assert (read.data.name, read.data.root) == ("imagefolder", str(screws))
    assert (read.data.image_size, read.data.color_order) == ((40, 48), "RGB")  # height, width: all are of one size
    assert list(read.models) == ["toy"]


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [(((300, 700), (280, 300)), 224), (((90, 200), (80, 70)), 64), (((20, 20),), 32), (((224, 224),), 224)],
)
def test_sizes(tmp_path, sizes, wanted):
    for number, size in enumerate(sizes):
        picture(tmp_path / "data" / "a" / f"{number}.png", size)
        picture(tmp_path / "data" / "b" / f"{number}.png", size)
    assert run(tmp_path / "project", "--data", tmp_path / "data") == 0
    read = loaded(tmp_path / "project")
    assert read.data.image_size == wanted
    assert list(read.models) == ["repvgg_a0"]


def test_gray_pictures_are_gray_and_a_folder_in_the_project_is_named_from_there(tmp_path):
    for kind in ("a", "b"):
        picture(tmp_path / "data" / kind / "1.png", mode="L")
        picture(tmp_path / "data" / kind / "2.tif", mode="I;16")
    assert run(tmp_path, "--data", tmp_path / "data") == 0
    read = loaded(tmp_path)
    assert (read.data.color_order, read.data.root) == ("gray", "data")


def test_broken_pictures_are_named_all_at_once(screws, tmp_path, capsys):
    (screws / "gut" / "leer.png").touch()
    (screws / "gut" / "kein Bild.jpg").write_text("text")
    assert run(tmp_path / "project", "--data", screws) == 0
    said = capsys.readouterr().out
    assert "warning: the build will stop at pictures that cannot be read." in said
    assert "leer.png cannot be decoded: it is empty" in said and "kein Bild.jpg cannot be decoded" in said
    assert loaded(tmp_path / "project").data.image_size == (40, 48)
    for file in screws.rglob("*.*"):
        file.write_text("")
    said = refused(capsys, tmp_path / "other", "--data", screws)
    assert "no picture in" in said and "can be read" in said
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("file", "arch", "naming", "form", "classes", "prefix"),
    [("RepVGG A0 ü.pth", "repvgg_a0", "official", "training", 1000, "module."),
     ("s0.safetensors", "mobileone_s0", "timm", "deploy", 7, "")],
)  # fmt: skip
def test_a_checkpoint_tells_its_network_and_classes(file, arch, naming, form, classes, prefix, tmp_path, capsys):
    path = written(tmp_path / file, arch, naming, form, classes, prefix)
    assert run(tmp_path / "project", "--checkpoint", path) == 0
    assert f"{file}: {arch}, {naming} layout, {form} form, {classes:,} classes" in capsys.readouterr().out
    read = loaded(tmp_path / "project")
    assert (read.data.name, read.data.classes, read.data.image_size) == ("none", classes, 224)
    assert read.models[arch].checkpoint == str(path)
    assert resolve.form(read.models[arch]) == form
    assert read.left_out == ("coreml-int8", "executorch-int8", "tensorrt-int8")


def test_a_checkpoint_of_this_pipeline_tells_all(artifacts, tmp_path):
    assert run(tmp_path, "--checkpoint", artifacts.checkpoint) == 0
    read = loaded(tmp_path)
    assert (read.models["toy"].arch, read.data.image_size, read.data.classes) == ("toy", 32, 10)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_classes_of_a_network_without_layouts_are_found_by_its_shapes(suffix, tmp_path, capsys):
    state = repnets.create_model("repshufflenet_x0_5", num_classes=37).state_dict()
    path = tmp_path / f"mine{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state, path)
    said = refused(capsys, tmp_path / "project", "--checkpoint", path)
    assert "Name its network with --arch" in said
    assert run(tmp_path / "project", "--checkpoint", path, "--arch", "repshufflenet_x0_5") == 0
    assert loaded(tmp_path / "project").data.classes == 37
    said = refused(capsys, tmp_path / "other", "--checkpoint", path, "--arch", "resnet18")
    assert "does not hold the weights of `resnet18`" in said and "Correct --arch" in said


def test_a_network_of_ones_own_without_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "denoisers.py").write_text("from torch import nn\ndef small():\n    return nn.Conv2d(3, 3, 3)\n")
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), "mine.pth")
    assert run("--checkpoint", "mine.pth", "--arch", "denoisers:small") == 0
    assert "no classifier" in capsys.readouterr().out
    read = loaded(tmp_path)
    assert read.models["small"].arch == "denoisers:small" and read.models["small"].checkpoint == "mine.pth"
    assert read.data.used_for is None


def test_a_checkpoint_with_pictures(artifacts, screws, tmp_path, capsys):
    path = written(tmp_path / "a0.pth", "repvgg_a0", "official", "training", 2)
    assert run(tmp_path / "labelled", "--checkpoint", path, "--data", screws) == 0
    read = loaded(tmp_path / "labelled")
    assert (read.data.name, read.data.classes) == ("imagefolder", "sorted")
    assert run(tmp_path / "unlabelled", "--checkpoint", path, "--data", screws / "gut") == 0
    read = loaded(tmp_path / "unlabelled")
    assert (read.data.name, read.data.classes) == ("pictures", 2)
    said = refused(capsys, tmp_path / "other", "--checkpoint", artifacts.checkpoint, "--data", screws)
    assert "tells 10 classes apart" in said and "has 2 class folders (Kratzer tief ü, gut)" in said


def test_pictures_without_classes_train_nothing(screws, tmp_path, capsys):
    said = refused(capsys, tmp_path / "project", "--data", screws / "gut")
    assert "lie in no class folders" in said and "--checkpoint" in said
    assert not (tmp_path / "project").exists()


def test_no_file_is_overwritten(tmp_path, capsys):
    (tmp_path / "targets" / "coreml").mkdir(parents=True)
    (tmp_path / "targets" / "coreml" / "target.yaml").write_text("mine")
    (tmp_path / "Snakefile").symlink_to("nowhere")
    said = refused(capsys, tmp_path)
    assert "holds targets/coreml/target.yaml, Snakefile already" in said and "--force" in said
    assert sorted(os.listdir(tmp_path)) == ["Snakefile", "targets"]
    assert (tmp_path / "targets" / "coreml" / "target.yaml").read_text() == "mine"
    assert run(tmp_path, "--force") == 0
    assert (tmp_path / "Snakefile").read_text().endswith("include: packaged.SNAKEFILE\n")
    assert "mine" not in (tmp_path / "targets" / "coreml" / "target.yaml").read_text()


def test_mistakes(tmp_path, capsys):
    assert "no target `corml` is shipped; did you mean `coreml`?" in refused(capsys, tmp_path, "--target", "corml")
    assert "did you mean `repvgg_a0`?" in refused(capsys, tmp_path, "--arch", "repvgg_aO")
    assert "nirgends is not a folder" in refused(capsys, tmp_path, "--data", tmp_path / "nirgends")
    assert "does not exist" in refused(capsys, tmp_path, "--checkpoint", tmp_path / "nirgends.pth")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    assert "is a file, and a project is a folder" in refused(capsys, tmp_path / "file")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").touch()
    assert "would be imported in place of the installed `pipeline`" in refused(capsys, tmp_path)
