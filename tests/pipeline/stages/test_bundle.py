"""The stage that packs a bundle: what is in it, that it is the same everywhere, and what it refuses."""

import getpass
import json
import shutil
import socket
import struct
import subprocess

import pytest
import torch

from pipeline import backends
from pipeline.artifacts.check_result import CheckedForm, CheckResult, GateResult
from pipeline.config import project
from pipeline.data import splits
from pipeline.deploy import bundle_file, golden, templates
from pipeline.errors import InputError
from tests.fixtures.documents import rebind


def about_of(made):
    """bundle.json, as JSON types."""
    return json.loads(made.read("bundle.json"))


def floats(content):
    return torch.tensor(struct.unpack(f"<{len(content) // 4}f", content))


def test_what_is_in_it(checked_toy, pack, artifacts):
    folder = checked_toy("executorch")
    made = pack(folder)
    about = about_of(made)
    assert {name for name in about["files"] if not name.startswith("golden/")} == {
        "README.md", "fused.pte", "labels.txt", "predict.py", "preprocessing.txt", "selftest.py",
        "integration/Classifier.kt", "integration/Classifier.swift", "integration/classifier.cpp",
        "integration/classify.py",
        "integration/network_input.py",
    }  # fmt: skip
    assert made.read("fused.pte") == (folder / "fused.pte").read_bytes()
    assert made.read("labels.txt").decode().split() == list(map(str, range(10)))
    written = json.loads((folder / "manifest.json").read_text())
    assert all(about[key] == written[key] for key in ("lineage", "input", "preprocessing", "precision", "target"))
    checked = json.loads((folder / "check.json").read_text())
    assert about["checked"]["accuracy"] == checked["accuracy"]["file"] and about["checked"]["by"] == "ExecuTorch"
    assert about["tolerance"] == checked["forms"]["fused"]["precision"]["tolerance"] == 1e-4
    assert about["run"] == ["python3", "selftest.py"]


def test_golden_images_are_of_the_validation_set_and_of_different_classes(checked_toy, pack, artifacts):
    made = pack(checked_toy("executorch"))
    split = splits.open_split(artifacts.split)
    preprocessing = split.preprocessing(32, "bilinear")
    images, labels = next(iter(split.batches("val", preprocessing, split.size("val"))))
    program = torch.export.load(artifacts.fused).module()
    cases = about_of(made)["golden"]
    assert len(cases) == 8 == len({case["labels"][0] for case in cases})
    for case in cases:
        values = floats(made.read(case["input"])).view(1, 3, 32, 32)
        found = (images == values).all(dim=(1, 2, 3)).nonzero().flatten()
        assert case["labels"][0] in labels[found]
        want = program(values).detach().flatten()
        assert torch.allclose(floats(made.read(case["output"])), want, atol=1e-5 * float(want.abs().max()))


def test_two_builds_in_two_places_are_the_same_bytes(checked_toy, artifacts, pack, tmp_path, monkeypatch):
    folder = checked_toy("executorch")
    first = pack(folder)
    other = tmp_path / "elsewhere" / "toy"
    shutil.copytree(folder, other)
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "another store"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        second = pack(other, dist=tmp_path / "elsewhere" / "dist")
    finally:
        torch.set_num_threads(threads)
    assert first.path.name == second.path.name and first.path.read_bytes() == second.path.read_bytes()
    content = first.path.read_bytes()
    for private in (str(tmp_path), str(folder), socket.gethostname(), getpass.getuser()):
        assert len(private) < 5 or private.encode() not in content, private  # shorter ones stand in any content


def test_the_second_time_it_comes_from_the_store(checked_toy, pack, capsys):
    first = pack(checked_toy("executorch"))
    first.path.unlink()
    capsys.readouterr()
    assert pack(checked_toy("executorch")).path == first.path
    assert "bundle: from the store" in capsys.readouterr().out
    assert sorted(path.name for path in first.path.parent.iterdir()) == ["bundle.json", first.path.name]


def test_a_text_that_changes_makes_another_bundle(checked_toy, pack, monkeypatch, tmp_path):
    first = pack(checked_toy("executorch"))
    shutil.copytree(templates._SHIPPED, tmp_path / "shipped")
    (tmp_path / "shipped" / "README.md").write_text("another\n")
    monkeypatch.setattr(templates, "_SHIPPED", tmp_path / "shipped")
    second = pack(checked_toy("executorch"))
    assert second.read("README.md") == b"another\n" and second.digest != first.digest


def test_a_signature_lies_beside_it_and_changes_nothing(checked_toy, pack, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "allowed").write_text(f"me {key.with_suffix('.pub').read_text()}")
    unsigned = pack(checked_toy("executorch")).path.read_bytes()
    signed = pack(checked_toy("executorch"), signing_key=str(key))
    assert signed.path.read_bytes() == unsigned
    told = json.loads((signed.path.parent / "bundle.json").read_text())
    assert told["signature"] == str(signed.signature) and told["digest"] == signed.digest
    assert bundle_file.verify_signature(signed.path, tmp_path / "allowed", "me")


def test_a_key_that_is_not_there_is_named(checked_toy, pack, tmp_path):
    with pytest.raises(InputError, match="there is no key"):
        pack(checked_toy("executorch"), signing_key=str(tmp_path / "none"))


def test_a_file_that_is_not_the_manifests_is_refused(checked_toy, pack, tmp_path):
    shutil.copytree(checked_toy("executorch"), tmp_path / "toy")
    with (tmp_path / "toy" / "fused.pte").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="is not the file that its manifest describes"):
        pack(tmp_path / "toy")
    assert list((tmp_path / "dist").iterdir()) == []


def test_golden_images_are_spread_over_the_classes():
    labels = [number // 10 for number in range(1000)]
    names, files = [str(n) for n in range(100)], {str(n): "0" for n in range(1000)}
    parts = {"train": range(500), "val": range(500, 1000)}
    many = splits.new_split("imagefolder", "/data", names, files, labels, parts)
    chosen = golden._chosen(many, 8)
    assert sorted(labels[number] for number in chosen.parts["val"]) == [50, 56, 62, 68, 75, 81, 87, 93]
    few = splits.new_split("imagefolder", "/data", ["a", "b"], {str(n): "0" for n in range(5)}, [0, 0, 0, 0, 1],
                         {"train": [0], "val": [1, 2, 3, 4]})  # fmt: skip
    assert golden._chosen(few, 3).parts["val"] == (1, 4, 2)
    assert golden._chosen(few, 9).parts["val"] == (1, 4, 2, 3)


@pytest.mark.parametrize(
    "held, want",
    [
        (GateResult(1e-4, max_relative_error=1e-7), 1e-4),
        (GateResult(2e-2, loss_of_fused=0.03), 0.06),
        (GateResult(0.1, flips=()), 0.1),
    ],
)
def test_the_tolerance_is_what_check_allowed(held, want):
    assert golden.tolerance(CheckedForm({}, GateResult(), 1.0, 0.9, held), "fp16") == want


def test_where_check_had_no_runtime_the_precision_s_own_tolerance_holds():
    assert golden.tolerance(CheckedForm({}, GateResult(), 1.0, 0.9), "fp16") == 2e-2
    assert golden.tolerance(CheckedForm({}, GateResult(), 1.0, 0.9), "w4") == 2e-2


def test_nothing_is_left_to_fill_in(checked_toy, pack):
    made = pack(checked_toy("executorch"))
    for name in made.manifest.files:
        if name.endswith((".md", ".txt", ".cpp", ".kt", ".swift")):
            text = made.read(name).decode()
            assert "@" not in text.replace("@Experimental", ""), name
            assert "None" not in text, name


@pytest.mark.parametrize(
    "given, said",
    [
        ({"signing": "key"}, "unknown key `bundle.signing`; did you mean `signing_key`?"),
        ({"golden_images": 0}, "`bundle.golden_images`: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_mistake_in_the_configuration_names_its_key(tmp_path, given, said):
    with pytest.raises(InputError) as error:
        project.load({"models": {"toy": None}, "bundle": given}, {}, tmp_path)
    assert said in str(error.value)


def test_a_timing_cache_goes_along_under_the_name_that_build_engine_sh_reads(tmp_path, capsys):
    known, other = tmp_path / "build-v100300.timing", tmp_path / "mine.cache"
    known.write_bytes(b"times")
    other.write_bytes(b"times")

    def found(backend, path):
        return backends.load(backend).bundle.beside({"timing_cache": path and str(path)})

    assert found("tensorrt", known) == {known.name: known}
    assert found("tensorrt", other) == {}
    assert "is left out: of which TensorRT it is cannot be told" in capsys.readouterr().err
    assert found("tensorrt", None) == found("tensorrt", tmp_path / "none") == {}
    assert backends.load("coreml").bundle.beside is None


@pytest.mark.slow
def test_a_larger_batch_is_filled_up(checked_toy, pack):
    made = pack(checked_toy("executorch", batch=3), golden_images=4)
    cases = about_of(made)["golden"]
    assert [len(case["labels"]) for case in cases] == [3, 3]
    first, last = (floats(made.read(case["input"])).view(3, -1) for case in cases)
    assert torch.equal(last[1], first[0]) and torch.equal(last[2], first[1])
    assert "kBatch = 3" in made.read("integration/classifier.cpp").decode()


@pytest.mark.slow
def test_a_core_ml_classifier_that_takes_pixels(checked_toy, pack, artifacts):
    made = pack(checked_toy("coreml", "fp16", class_labels=True, normalization=True))
    about, case = about_of(made), about_of(made)["golden"][0]
    assert {name for name in about["files"] if name.startswith("fused.mlpackage/")} >= {
        "fused.mlpackage/Manifest.json",
        "fused.mlpackage/Data/com.apple.CoreML/model.mlmodel",
    }
    assert about["input"]["dtype"] == "uint8" and about["output"]["kind"] == "probabilities"
    assert about["output"]["name"] in json.loads((checked_toy("coreml", "fp16", class_labels=True, normalization=True)
        / "manifest.json").read_text())["forms"]["fused"]["facts"]["outputs"]  # fmt: skip
    assert floats(made.read(case["output"])).sum() == pytest.approx(1, abs=1e-6)
    pixels = made.read(case["input"])
    assert len(pixels) == 3 * 32 * 32 and max(pixels) > 200
    how = about["preprocessing"]
    image = torch.tensor(list(pixels)).view(1, 3, 32, 32) / 255
    mean, std = (torch.tensor(how[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    program = torch.export.load(artifacts.fused).module()
    want = torch.softmax(program((image - mean) / std).detach(), 1).flatten()
    assert torch.allclose(floats(made.read(case["output"])), want, atol=2e-3)
    swift = made.read("integration/Classifier.swift").decode()
    assert "CVPixelBuffer" in swift and f'"{about["output"]["name"]}"' in swift


@pytest.mark.slow
def test_tensorrt_ships_the_onnx_file_and_no_engine(checked_toy, pack):
    folder = checked_toy("tensorrt", "fp16", compute_capabilities=["8.6"])
    made = pack(folder)
    top = {name for name in made.manifest.files if "/" not in name}
    assert top == {"README.md", "fused.onnx", "build_engine.sh", "labels.txt", "predict.py", "preprocessing.txt",
                   "selftest.py"}  # fmt: skip
    assert (
        made.manifest.facts["trtexec"]["build"][0] == "--stronglyTyped" and made.manifest.facts["trtexec"]["run"] == []
    )
    script = made.read("build_engine.sh").decode()
    assert all(option in script for option in made.manifest.facts["trtexec"]["build"])
    with pytest.raises(InputError, match=r"it is TensorRT-RTX's|there is none"):
        pack(folder, include_engine=True)


@pytest.mark.slow
def test_an_engine_goes_along_where_tensorrt_built_it_here(checked_toy, pack, tmp_path):
    """The manifest is edited to say so, since no such GPU is here."""
    folder = tmp_path / "toy"
    shutil.copytree(checked_toy("tensorrt", "fp16", compute_capabilities=["8.6"]), folder)
    written = json.loads((folder / "manifest.json").read_text())
    written["forms"]["fused"]["facts"] |= {"maker": "TensorRT", "version": "10.3.0", "compute_capabilities": ["8.7"]}
    (folder / "manifest.json").write_text(json.dumps(written))
    rebind(CheckResult, folder / "check.json", manifest=folder / "manifest.json")
    if "fused.engine" not in written["forms"]["fused"]["files"]:
        pytest.skip("no builder of engines is installed")
    made = pack(folder, include_engine=True)
    assert made.read("fused.engine") == (folder / "fused.engine").read_bytes()
    assert made.manifest.facts["engine"] == {"maker": "TensorRT", "version": "10.3.0", "compute_capabilities": ["8.7"]}


@pytest.mark.slow
def test_an_int8_bundle_holds_the_int8_program_s_outputs(checked_toy, pack, quantized):
    made = pack(checked_toy("executorch", "int8", form="quantized"))
    assert made.manifest.file == "quantized.pte" and made.manifest.tolerance >= 0.05
    program = torch.export.load(quantized).module()
    case = about_of(made)["golden"][3]
    want = program(floats(made.read(case["input"])).view(1, 3, 32, 32)).detach().flatten()
    assert torch.allclose(floats(made.read(case["output"])), want, atol=0.02 * float(want.abs().max()))
