"""One small project is built once and then forged many times: each reader refuses what its proofs are not of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifacts import digests, documents
from pipeline.artifacts.bench_result import BenchResult
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.cli.main import main
from pipeline.config.project import Bundle, Verify
from pipeline.config.stages import (
    BenchSettings,
    BundleSettings,
    CheckSettings,
    ExportSettings,
    NoSettings,
    QuantizeSettings,
)
from pipeline.config.targets import Bench, Check
from pipeline.data import splits
from pipeline.errors import GateError, InputError
from pipeline.stages import bench, bundle, check, export, quantize, report, summarize, verify

QUICK = Bench(threads=[1], warmup_seconds=0, min_runs=10, max_seconds=0.01, launches=(1, 1))
FORMS = ("fused", "branched")


class Tree:
    """The paths of a built project, and its stages."""

    def __init__(self, root: Path):
        self.root, self.model, self.target = root, root / "artifacts/toy", root / "targets/phone/toy"
        self.split, self.manifest = root / "artifacts/split.json", self.target / "manifest.json"
        self.programs = {name: self.model / f"{name}.pt2" for name in ("fused",)}
        self.checkpoint, self.verify_json = self.model / "checkpoint.safetensors", self.model / "verify.json"
        self.files = [self.target / f"{form}.pte" for form in FORMS]

    def verify(self):
        verify.run(Verify(), checkpoint=self.checkpoint, split=self.split, **self.programs, output=self.verify_json)

    def quantize(self):
        outputs = {"quantized": self.model / "quantized.pt2", "report": self.model / "quantize.json"}
        quantize.run(QuantizeSettings(), **self.programs, verify=self.verify_json, split=self.split, **outputs)

    def export(self, folder=None):
        settings = ExportSettings(target="phone", model="toy", backend="executorch", precision="fp32", forms=FORMS,
                                  batch=1, image_size=None, options={})  # fmt: skip
        place = (folder or self.target) / "manifest.json"
        export.run(settings, checkpoint=self.checkpoint, **self.programs, verify=self.verify_json, manifest=place)

    def check(self, **asked):
        check.run(CheckSettings(backend="executorch", check=Check(), **asked), manifest=self.manifest, files=self.files,
                  **self.programs, verify=self.verify_json, split=self.split, output=self.target / "check.json",
                  )  # fmt: skip

    def bench(self):
        bench.run(BenchSettings(backend="executorch", bench=QUICK), manifest=self.manifest, files=self.files,
                  check=self.target / "check.json", **self.programs, output=self.target / "bench.json",
                  profile=self.target / "profile.json")  # fmt: skip

    def report(self):
        summarize.run(NoSettings(), benches=[self.target / "bench.json"], output=self.root / "targets/phone/bench.json")
        self.page()

    def page(self):
        report.run(NoSettings(), benches=[self.root / "targets/phone/bench.json"], fuses=[self.model / "fuse.json"],
                   profiles=[self.target / "profile.json"], output=self.root / "report.md")  # fmt: skip

    def bundle(self):
        dist = self.root / "dist"
        dist.mkdir(exist_ok=True)
        bundle.run(BundleSettings(backend="executorch", options={}, bundle=Bundle(golden_images=1)), dist=dist,
                   manifest=self.manifest, check=self.target / "check.json", files=self.files[:1], **self.programs,
                   split=self.split, output=self.target / "bundle.json")  # fmt: skip


@pytest.fixture(scope="module")
def built(artifacts, exported_toy, made_once):
    def fill(folder):
        tree = Tree(folder)
        shutil.copytree(artifacts.folder, folder / "artifacts", ignore=shutil.ignore_patterns("store"))
        shutil.copytree(exported_toy("executorch", forms=FORMS), tree.target)
        for stage in (tree.check, tree.bench, tree.report, tree.bundle):
            stage()

    return made_once("forgeries", fill)


@pytest.fixture
def tree(built, tmp_path, monkeypatch):
    root = shutil.copytree(built, tmp_path / "project", ignore=shutil.ignore_patterns("store"))
    monkeypatch.chdir(root)
    return Tree(root)


def edit(path, change):
    """By hand: as an editor does it."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def forge(kind, path, **changes):
    """By someone who knows how the digest of a document is made."""
    documents.write(path, replace(documents.read(kind, path), **changes))


def flip(path, at=-5):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap_content(one, other):
    one_content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(one_content)


def other_split(tree, part):
    """A split of the same images whose validation part is what `part` makes of both; a valid split by itself."""
    made = splits.open_split(tree.split)
    parts = part(list(made.parts["train"]), list(made.parts["val"]))
    fresh = splits.new_split(made.name, made.root, made.classes, made.sources, made.labels, parts)
    splits.write_split(tree.split, fresh)


def one_image(tree):
    other_split(tree, lambda train, val: {"train": train + val[1:], "val": val[:1]})


def training_images(tree):
    other_split(tree, lambda train, val: {"train": val + train[len(val) :], "val": train[: len(val)]})


def trained_and_held_out(tree):
    other_split(tree, lambda train, val: {"train": train, "val": train[:50]})


def in_manifest(*keys, value):
    def change(tree):
        def put(document):
            *way, last = keys
            for key in way:
                document = document[key]
            document[last] = value

        edit(tree.manifest, put)

    return change


def branched_first(tree):
    edit(tree.manifest, lambda one: one.update(forms=dict(reversed(one["forms"].items()))))


def branched_as_fused(tree):
    swap_content(*tree.files)

    def names(document):
        for file in tree.files:
            facts = document["forms"][file.stem]["files"][file.name]
            facts["sha256"] = digests.digest(file)

    edit(tree.manifest, names)


def rebuilt_baseline(tree):
    """The manifest is made to fit too."""
    flip(tree.files[1])
    edit(tree.manifest, lambda one: one["forms"]["branched"]["files"]["branched.pte"].update(
        sha256=digests.digest(tree.files[1])))  # fmt: skip


def check_of_another(tree):
    edit(tree.manifest, lambda one: one.update(target="tablet"))


FUSED = "is of another fused.pt2"
FORGERIES = {
    # what is done, which stage reads it next, and what it says
    "fused.pt2 changed after verify, exported": (lambda t: flip(t.programs["fused"]), "export", FUSED),
    "fused.pt2 changed after verify, quantized": (lambda t: flip(t.programs["fused"]), "quantize", FUSED),
    "fused.pt2 changed after verify, checked": (lambda t: flip(t.programs["fused"]), "check", FUSED),
    "fused.pt2 changed after check, timed": (lambda t: flip(t.programs["fused"]), "bench", FUSED),
    "fused.pt2 changed after check, packed": (lambda t: flip(t.programs["fused"]), "bundle", FUSED),
    "checkpoint changed after verify": (lambda t: flip(t.checkpoint), "export", r"another checkpoint\.safetensors"),
    "verify.json failed": (lambda t: edit(t.verify_json, lambda one: one.update(status="failed")), "export", "status"),
    "verify.json failed, checked": (
        lambda t: edit(t.verify_json, lambda one: one.update(status="failed")), "check", "status"),
    "verify.json edited": (
        lambda t: edit(t.verify_json, lambda one: one["accuracy"].update(fused=1.0)), "check", "was edited"),
    "verify.json of others": (lambda t: forge(VerifyResult, t.verify_json, subjects={}), "export", "does not speak of"),
    "verify.json of another fused.pt2": (
        lambda t: forge(VerifyResult, t.verify_json,
                        subjects=documents.read(VerifyResult, t.verify_json).subjects | {"fused": "0" * 64}),
        "check", FUSED),
    "verify.json made anew after export": (
        lambda t: forge(VerifyResult, t.verify_json, agreement=0.5), "check", r"another verify\.json"),
    "split remade with one image": (one_image, "check", r"another split\.json"),
    "split remade with one image, verified": (one_image, "verify", "not the split that the checkpoint was made with"),
    "split remade with one image, quantized": (one_image, "quantize", r"another split\.json"),
    "split remade with one image, packed": (one_image, "bundle", r"another split\.json"),
    "split remade with training images": (training_images, "check", r"another split\.json"),
    "split remade with training images, verified": (training_images, "verify", "was trained on may be held out"),
    "split whose parts overlap": (trained_and_held_out, "verify", "50 images are in both parts"),
    "split edited": (lambda t: edit(t.split, lambda one: one.update(val=one["val"][:1])), "verify", "was edited"),
    "manifest edited after check, timed": (
        in_manifest("preprocessing", "mean", value=[0, 0, 0]), "bench", r"another manifest\.json"),
    "manifest edited after check, packed": (
        in_manifest("preprocessing", "mean", value=[0, 0, 0]), "bundle", r"another manifest\.json"),
    "manifest: mean": (in_manifest("preprocessing", "mean", value=[0, 0, 0]), "check", "`mean` of the preprocessing"),
    "manifest: std": (in_manifest("preprocessing", "std", value=[1, 1, 1]), "check", "`std` of the preprocessing"),
    "manifest: order of the colours": (
        in_manifest("preprocessing", "color_order", value="BGR"), "check", "`color_order` of the preprocessing"),
    "manifest: interpolation": (
        in_manifest("preprocessing", "interpolation", value="bicubic"), "check", "`interpolation` of the"),
    "manifest: order of the classes": (
        in_manifest("preprocessing", "classes", value=list("1023456789")), "check", "`classes` of the preprocessing"),
    "manifest: fewer classes": (in_manifest("preprocessing", "classes", value=list("012")), "check", "`classes`"),
    "manifest: image size": (in_manifest("preprocessing", "image_size", value=64), "check", "`image_size` is 64"),
    "manifest: input shape": (in_manifest("input", "shape", value=[1, 3, 64, 64]), "check", "`image_size`"),
    "manifest: batch": (in_manifest("input", "shape", value=[4, 3, 32, 32]), "check", "`output batch` is 1, but 4"),
    "manifest: channels": (in_manifest("input", "shape", value=[1, 1, 32, 32]), "check", "`channels` is 3, but 1 by"),
    "manifest: height": (
        in_manifest("input", "shape", value=[1, 3, 48, 32]), "check", r"`image_size` is 32, but \(48, 32\) by"),
    "manifest: free sizes": (
        in_manifest("input", "free", value={"batch": {"min": 1, "max": 8}}), "check", "`input batch` is any, but 1"),
    "manifest: input name": (in_manifest("input", "name", value="pixels"), "check", "`input name` is pixels"),
    "manifest: output name": (in_manifest("outputs", 0, "name", value="scores"), "check", "`output name` is scores"),
    "manifest: input type": (in_manifest("input", "dtype", value="uint8"), "check", "`input type` is uint8"),
    "manifest: output type": (in_manifest("outputs", 0, "dtype", value="float16"), "check", "`output type` is float16"),
    "manifest: output shape": (in_manifest("outputs", 0, "shape", value=[1, 7]), "check", "`classes` is 10, but 7"),
    "manifest: precision": (in_manifest("precision", value="fp16"), "check", "`precision` is fp16, but fp32"),
    "manifest: backend": (in_manifest("backend", value="onnx"), "check", "`backend` is onnx, but executorch"),
    "manifest: the branched file first": (branched_first, "check", "its forms are branched, fused"),
    "manifest: the branched file first, timed": (branched_first, "bench", "its forms are branched, fused"),
    "manifest: the branched file as the fused one": (branched_as_fused, "check", "convolutions"),
    "manifest: no baseline": (
        lambda t: edit(t.manifest, lambda one: one["forms"].pop("branched")), "bench", r"another manifest\.json"),
    "manifest: an extra file": (
        in_manifest("extras", "build.sh", value={"sha256": "00", "size_bytes": 1}), "check", "`files` is"),
    "manifest: lineage of another checkpoint": (
        in_manifest("lineage", "fused", value="0" * 64), "check", FUSED),
    "manifest: lineage of another fused.pt2, timed": (
        in_manifest("lineage", "fused", value="0" * 64), "bench", FUSED),
    "manifest: no proof": (lambda t: edit(t.manifest, lambda one: one["lineage"].pop("verify")), "check",
                           r"does not speak of verify\.json"),
    "check.json of another target": (check_of_another, "bench", r"another manifest\.json"),
    "check.json of another target, packed": (check_of_another, "bundle", r"another manifest\.json"),
    "check.json edited": (
        lambda t: edit(t.target / "check.json", lambda one: one["accuracy"].update(file=1.0)), "bench", "was edited"),
    "check.json edited, packed": (
        lambda t: edit(t.target / "check.json", lambda one: one["accuracy"].update(file=1.0)), "bundle", "was edited"),
    "check.json lost": (
        lambda t: forge(CheckResult, t.target / "check.json", status="lost", reason="too far off."), "bench",
        "did not pass its check: too far off"),
    "check.json lost, packed": (
        lambda t: forge(CheckResult, t.target / "check.json", status="lost", reason="too far off."), "bundle",
        "did not pass its check: too far off"),
    "check.json without files": (
        lambda t: forge(CheckResult, t.target / "check.json", subjects={}), "bench", "does not speak of"),
    "exported file changed after check": (lambda t: flip(t.files[0]), "bench", r"fused\.pte is not the file that its"),
    "exported file changed before check": (lambda t: flip(t.files[0]), "check", r"fused\.pte is not the file that its"),
    "exported file changed, packed": (lambda t: flip(t.files[0]), "bundle", r"another fused\.pte|is not the file"),
    "baseline replaced": (lambda t: flip(t.files[1]), "bench", r"branched\.pte is not the file that its manifest"),
    "baseline replaced with its manifest": (rebuilt_baseline, "bench", r"another manifest\.json"),
    "bench.json edited": (
        lambda t: edit(t.target / "bench.json", lambda one: one["speedup"].update(median=9.0)), "report", "was edited"),
    "bench.json forged": (
        lambda t: forge(BenchResult, t.target / "bench.json", remedy="none"), "report", "is of another"),
    "bench.json of another fused.pt2": (
        lambda t: forge(BenchResult, t.target / "bench.json", subjects={"fused": "0" * 64}), "report", "of another"),
    "summary edited": (
        lambda t: edit(t.root / "targets/phone/bench.json", lambda one: one.update(status="unavailable")), "page",
        "was edited|bench"),
    "profile.json edited": (
        lambda t: edit(t.target / "profile.json", lambda one: one.update(inference_ms=0.1)), "page", "was edited"),
    "profile.json of another bench.json": (
        lambda t: forge(ProfileResult, t.target / "profile.json", subjects={"bench": "0" * 64}), "page", "of another"),
    "fuse.json edited": (
        lambda t: edit(t.model / "fuse.json", lambda one: one["after"].update(convolutions=1)), "page", "was edited"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_refused_and_named(tree, forgery):
    change, stage, message = FORGERIES[forgery]
    change(tree)
    with pytest.raises((InputError, GateError), match=message):
        getattr(tree, stage)()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_verify_tree_says_what_is_not_bound(tree, forgery, capsys):
    FORGERIES[forgery][0](tree)
    assert main(["verify-tree", str(tree.root)]) == 1
    assert "NOT BOUND" in capsys.readouterr().out


def test_a_tree_as_it_was_built_is_bound(tree, capsys):
    assert main(["verify-tree"]) == 0
    told = capsys.readouterr().out
    assert "NOT BOUND" not in told and "documents, all bound to what lies there" in told
    for name in ("verify", "fuse"):
        assert f"artifacts/toy/{name}.json" in told
    for name in ("manifest", "check", "bench", "profile", "bundle"):
        assert f"targets/phone/toy/{name}.json" in told


@pytest.mark.parametrize(
    ("remove", "what"),
    [
        ("artifacts/toy/verify.json", "verify is not there"),
        ("targets/phone/toy/check.json", "there is no check.json beside it"),
        ("targets/phone/toy/branched.pte", "branched.pte is not there"),
        ("targets/phone/toy/manifest.json", "manifest is not there"),
    ],
)
def test_verify_tree_says_what_is_missing(tree, capsys, remove, what):
    (tree.root / remove).unlink()
    assert main(["verify-tree"]) == 1
    assert what in capsys.readouterr().out


def test_verify_tree_names_a_file_of_which_no_manifest_speaks_and_a_folder_that_was_moved(tree, capsys):
    shutil.copy(tree.files[0], tree.target / "other.pte")
    shutil.copytree(tree.target, tree.root / "targets/tablet/toy")
    assert main(["verify-tree"]) == 1
    told = capsys.readouterr().out
    assert "targets/phone/toy/other.pte" in told and "no manifest.json beside it speaks of it" in told
    assert "it is of the target phone" in told


def test_verify_tree_of_a_folder_where_nothing_was_built(tmp_path, capsys):
    assert main(["verify-tree", str(tmp_path)]) == 2
    assert "anything built" in capsys.readouterr().err


def test_what_was_asked_for_is_what_was_exported(tree):
    tree.check(target="phone", model="toy", precision="fp32")
    for key, other in {"target": "tablet", "model": "toy2", "precision": "fp16"}.items():
        with pytest.raises(GateError, match=f"`{key}` is .*, but {other} by the configuration"):
            tree.check(**{key: other})


def test_the_same_inputs_give_the_same_evidence(tree, monkeypatch, tmp_path):
    """So that what comes after is found in the store."""
    before = {path: digests.digest(path) for path in (tree.verify_json, tree.target / "check.json", tree.manifest)}
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "another"))
    for stage in (tree.verify, tree.export, tree.check):
        stage()
    assert {path: digests.digest(path) for path in before} == before
