"""A toy network with randomised statistics, as the stages leave it on disk; and modules of the user's own."""

import hashlib
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures import own_code
from tests.fixtures.documents import rebind, write_check

SIZE = 32


@dataclass(frozen=True)
class Artifacts:
    """Paths of one network's artifacts."""

    folder: Path

    @property
    def split(self) -> Path:
        return self.folder / "split.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "toy" / "checkpoint.safetensors"

    @property
    def fused(self) -> Path:
        return self.folder / "toy" / "fused.pt2"

    @property
    def report(self) -> Path:
        return self.folder / "toy" / "fuse.json"

    @property
    def quantized(self) -> Path:
        """Made by the fixture of that name."""
        return self.folder / "toy" / "quantized.pt2"

    @property
    def verify(self) -> Path:
        return self.folder / "toy" / "verify.json"


def _randomised(model):
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def write_checkpoint(path: Path, split: Path, seed: int = 0) -> None:
    """An untrained toy network whose batch norms are far from their defaults, as a checkpoint."""
    import torch

    import repnets
    from pipeline.artifacts.checkpoint_header import CheckpointHeader
    from pipeline.data.splits import open_split
    from pipeline.models import checkpoints

    torch.manual_seed(seed)
    model = _randomised(repnets.create_model("toy", num_classes=10))
    data = open_split(split)
    header = CheckpointHeader(
        arch="toy",
        num_classes=10,
        preprocessing=data.preprocessing(SIZE, "bilinear"),
        data_digest=data.digest,
        epoch=0,
        weights="raw",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(path, model.state_dict(), header)


@pytest.fixture(scope="session")
def artifacts(made_once) -> Artifacts:
    """A toy network, fused and verified by the stages themselves. Do not change it: copy what you damage."""

    def fill(folder: Path) -> None:
        from pipeline.config.project import Verify
        from pipeline.config.stages import NoSettings, SplitSettings
        from pipeline.stages import reparameterize, split, verify

        made = Artifacts(folder)
        split.run(SplitSettings(name="digits", root=None, val_fraction=0.2, split_seed=0), output=made.split)
        write_checkpoint(made.checkpoint, made.split)
        reparameterize.run(
            NoSettings(), checkpoint=made.checkpoint, split=made.split, fused=made.fused, report=made.report
        )
        verify.run(Verify(), checkpoint=made.checkpoint, split=made.split, fused=made.fused, output=made.verify)

    return Artifacts(made_once("artifacts", fill))


@pytest.fixture(scope="session")
def quantized(artifacts, made_once) -> Path:
    """The toy network in int8, made by the stage itself. It is untrained, so that no accuracy is held."""

    def fill(folder: Path) -> None:
        from pipeline.config.stages import QuantizeSettings
        from pipeline.stages import quantize

        quantize.run(
            QuantizeSettings(calibration_images=128, max_metric_drop=1.0),
            fused=artifacts.fused, verify=artifacts.verify, split=artifacts.split,
            quantized=artifacts.quantized, report=artifacts.quantized.with_name("quantize.json"),
        )  # fmt: skip

    made_once("quantized", fill)
    return artifacts.quantized


@pytest.fixture(scope="session")
def run_check(artifacts):
    """Checks the files that export wrote into a folder, by default against the toy's artifacts; returns check.json.

    For another `fused`, the proofs are made to fit it, so that the gates have to find it.
    """
    from pipeline import backends
    from pipeline.artifacts import digests
    from pipeline.artifacts.verify_result import VerifyResult
    from pipeline.config.stages import CheckSettings
    from pipeline.config.targets import Check
    from pipeline.stages import check

    def run(folder, backend, against=artifacts, fused=None, quantized=None, **gates):
        manifest = json.loads((folder / "manifest.json").read_text())
        proof = against.verify
        if fused:
            proof = folder / "verify.json"
            shutil.copy(against.verify, proof)
            rebind(VerifyResult, proof, fused=fused)
            manifest["lineage"] |= {"fused": digests.digest(fused), "verify": digests.digest(proof)}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        forms = manifest["forms"]
        check.run(
            CheckSettings(backend=backend, check=Check(**gates)),
            manifest=folder / "manifest.json",
            files=[folder / name for name in backends.file_names(backend, list(forms))],
            fused=fused or against.fused,
            verify=proof,
            split=against.split,
            output=folder / "check.json",
            quantized=quantized,
        )
        return json.loads((folder / "check.json").read_text())

    return run


@pytest.fixture(scope="session")
def exported_toy(artifacts, made_once, request):
    """A function: the folder of the toy's files for a backend and their manifest, not checked; each once.

    Copy what you change.
    """

    def folder_of(backend, precision="fp32", forms=("fused",), batch=1, **options):
        from pipeline.config.stages import ExportSettings
        from pipeline.stages import export

        int8 = request.getfixturevalue("quantized") if "quantized" in forms else None
        settings = ExportSettings(target="phone", model="toy", backend=backend, precision=precision, forms=forms,
                                  batch=batch, image_size=None, options=options)  # fmt: skip

        def fill(folder: Path) -> None:
            (folder / "toy").mkdir()
            export.run(
                settings, checkpoint=artifacts.checkpoint, fused=artifacts.fused, verify=artifacts.verify,
                manifest=folder / "toy" / "manifest.json", quantized=int8,
            )  # fmt: skip

        return made_once(f"exported-{_name_of(settings)}", fill) / "toy"

    return folder_of


def _name_of(settings) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]


@pytest.fixture(scope="session")
def checked_toy(artifacts, exported_toy, run_check, made_once):
    """A function: a folder of `exported_toy` with its check.json, of one form; each once. Copy what you change."""

    def folder_of(backend, precision="fp32", form="fused", **settings):
        source = exported_toy(backend, precision, (form,), **settings)

        def fill(folder: Path) -> None:
            shutil.copytree(source, folder / "toy")
            int8 = artifacts.quantized if form == "quantized" else None
            run_check(folder / "toy", backend, quantized=int8, max_metric_drop=1.0)

        return made_once(source.parent.name.replace("exported", "checked"), fill) / "toy"

    return folder_of


@pytest.fixture(scope="session")
def toy_to_time(artifacts, exported_toy, made_once):
    """A function: a folder of both forms of the toy, with a check.json of made-up accuracies. Copy what you change."""

    def folder_of(backend):
        source = exported_toy(backend, forms=("fused", "branched"))

        def fill(folder: Path) -> None:
            shutil.copytree(source, folder / "toy")
            write_check(folder / "toy", "a runtime", fused=artifacts.fused, split=artifacts.split)

        return made_once(f"to-time-{backend}", fill) / "toy"

    return folder_of


@pytest.fixture
def pack(artifacts, tmp_path):
    """Packs a folder of exported files; returns the opened bundle."""
    from pipeline import backends
    from pipeline.config.project import Bundle
    from pipeline.config.stages import BundleSettings
    from pipeline.deploy import bundle_file
    from pipeline.stages import bundle

    def run(folder, options=None, dist=tmp_path / "dist", **settings):
        written = json.loads((folder / "manifest.json").read_text())
        form = next(iter(written["forms"]))
        dist.mkdir(exist_ok=True)
        bundle.run(
            BundleSettings(backend=written["backend"], options=options or {}, bundle=Bundle(**settings)),
            manifest=folder / "manifest.json",
            check=folder / "check.json",
            files=[folder / name for name in backends.file_names(written["backend"], [form])],
            fused=artifacts.fused,
            quantized=artifacts.quantized if form == "quantized" else None,
            split=artifacts.split,
            dist=dist,
            output=dist / "bundle.json",
        )
        return bundle_file.open_bundle(dist / json.loads((dist / "bundle.json").read_text())["bundle"])

    return run


@pytest.fixture(scope="session")
def believed():
    """Makes the manifest believe a file as it is now, so that the other gates have to find the damage."""
    from pipeline.artifacts import digests

    def rewrite(folder, name):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["forms"][Path(name).stem]["files"][name]["sha256"] = digests.digest(folder / name)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return rewrite


@pytest.fixture(scope="session")
def randomise():
    """Moves every batch norm of a model away from its defaults, which hide errors; returns the model."""
    return _randomised


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """The folder of a run, empty; a function that writes the user's own modules into it, by path without `.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(files: dict[str, str]) -> None:
        own_code.forget(folder=tmp_path)
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    yield write
    write({})
