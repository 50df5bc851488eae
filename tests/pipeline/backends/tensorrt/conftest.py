"""Engines of TensorRT-RTX, the one TensorRT that builds without a GPU."""

import sys

import pytest

from pipeline.backends.tensorrt import backend

GPUS = ["8.6", "8.9", "12.0"]


@pytest.fixture(scope="session")
def tensorrt_files(programs, spec, tmp_path_factory):
    """Paths of (.onnx, .engine) and facts of each form, fp16."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux x86-64 and Windows alone")
    folder = tmp_path_factory.mktemp("tensorrt")
    files, facts = {}, {}
    for form in ("fused", "branched"):
        files[form] = [folder / f"{form}.onnx", folder / f"{form}.engine"]
        facts[form] = backend.BACKEND.export(programs[form], files[form], spec("fp16", compute_capabilities=GPUS))
    return files, facts


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a program named trtexec on PATH that runs a Python text; it shows what is asked, nothing of TensorRT."""

    def make(text: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "trtexec").write_text(f"#!{sys.executable}\n{text}")
        (folder / "trtexec").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return make
