"""Exported files of the toy network, as users have them: some with a manifest.json beside them, some without."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec
from pipeline.data.splits import open_split
from pipeline.models import checkpoints, programs
from pipeline.models.passes.float16 import half
from tests.fixtures.documents import write_manifest

SIZE = 32


@dataclass(frozen=True)
class Files:
    """Paths: fused.pt2 as the pipeline leaves it; the others of a static shape (1, 3, 32, 32)."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        stem, _, suffix = name.rpartition("_")
        return next(self.folder.glob(f"*/{stem}.{suffix}"))


@pytest.fixture(scope="session")
def exported_files(artifacts, tmp_path_factory) -> Files:
    """fused_pt2, branched_pt2, half_pt2 without manifest; fused_pte, branched_pte, fused_onnx with one."""
    folder = tmp_path_factory.mktemp("files")
    preprocessing = open_split(artifacts.split).preprocessing(SIZE, "bilinear")
    spec = ExportSpec("fp32", (1, 3, SIZE, SIZE), preprocessing)
    example = (torch.zeros(spec.input_shape),)
    modules = {
        "fused": programs.as_module(torch.export.load(artifacts.fused)),
        "branched": checkpoints.load_model(artifacts.checkpoint)[0],
    }
    captured = {form: torch.export.export(module, example) for form, module in modules.items()}
    (folder / "programs").mkdir()
    shutil.copy(artifacts.fused, folder / "programs" / "fused.pt2")
    torch.export.save(captured["branched"], folder / "programs" / "branched.pt2")
    torch.export.save(half(captured["fused"]), folder / "programs" / "half.pt2")
    for name, forms in (("executorch", ("fused", "branched")), ("onnx", ("fused",))):
        backend = backends.load(name)
        (folder / name).mkdir()
        files = {form: folder / name / backend.file_name(form) for form in forms}
        for form, file in files.items():
            backend.export(captured[form], [file], spec)
        write_manifest(folder / name, name, files, spec)
    return Files(folder)


@pytest.fixture
def changed(artifacts, tmp_path):
    """fused.pt2 with its parameters changed by a function of name and tensor."""

    def write(change) -> Path:
        program = torch.export.load(artifacts.fused)
        with torch.no_grad():
            for name, parameter in program.named_parameters():
                change(name, parameter)
        torch.export.save(program, tmp_path / "changed.pt2")
        return tmp_path / "changed.pt2"

    return write
