"""A converter that gets one layer wrong is found out by cutting the program, whatever its runtime shows."""

import os
from pathlib import Path

import pytest
import torch

from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.models import programs
from pipeline.verification import localize

SHAPE = (1, 3, 32, 32)
SPEC = ExportSpec("fp32", SHAPE, Preprocessing(32, (0.5,) * 3, (0.5,) * 3, tuple("0123456789")))


@pytest.fixture
def program(artifacts):
    return programs.static(torch.export.load(artifacts.fused).module(), SHAPE)


@pytest.fixture(autouse=True)
def runtimes(monkeypatch):
    """The runtimes of the tests are found here and by the worker."""
    here = str(Path(__file__).parents[2] / "fixtures")
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))


def located(backend, program, file):
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).numpy()
    return localize.locate(backend, file, program, SPEC, image, 1e-5)


def test_the_layer_that_the_exporter_gets_wrong_is_named(program, tmp_path):
    file = tmp_path / "fused.onnx"
    backends.load("runtimes.faulty").export(program, [file], SPEC)
    text = located("runtimes.faulty", program, file)
    assert text.startswith("the first layer that departs is relu_1: ")
    assert "conv2d_1 (stage2) before it still agrees" in text


def test_a_sound_file_has_no_such_layer(program, tmp_path):
    file = tmp_path / "fused.onnx"
    backends.load("onnx").export(program, [file], SPEC)
    assert located("onnx", program, file) == "cut short after any layer, the program exports and runs as it should"


def test_a_file_of_another_exporter_is_told_as_such(program, tmp_path):
    file = tmp_path / "fused.onnx"
    backends.load("onnx").export(program, [file], SPEC)
    file.write_bytes(file.read_bytes() + b"\x72\x00")  # an empty field at its end
    text = located("onnx", program, file)
    assert text.startswith("it has every weight of its program, but is not the file that the exporter writes of it now")
