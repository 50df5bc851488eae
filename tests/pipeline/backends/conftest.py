"""A small network in both forms, saved and loaded as the pipeline does it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.artifacts.manifest import ExportSpec, Preprocessing

SHAPE = (1, 3, 16, 16)
CLASSES = tuple(f"class {index}" for index in range(5))


class Branched(nn.Module):
    """3x3, 1x1 and, where the shape allows it, a batch norm alone, added up; in training form."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.point = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False), nn.BatchNorm2d(outputs))
        self.identity = nn.BatchNorm2d(inputs) if (inputs, stride) == (outputs, 1) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.dense(x) + self.point(x)
        return total if self.identity is None else total + self.identity(x)


def network(form: str) -> nn.Module:
    """3 blocks, 16 channels: 3 convolutions if fused; 6, 6 batch norms behind them and 1 alone if not."""
    torch.manual_seed(0)
    plan = ((3, 16, 2), (16, 16, 1), (16, 24, 2))
    layers: list[nn.Module] = []
    for inputs, outputs, stride in plan:
        fused = nn.Conv2d(inputs, outputs, 3, stride, 1)
        layers += [fused if form == "fused" else Branched(inputs, outputs, stride), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, len(CLASSES)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def program_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each form as .pt2, with the static shape ``SHAPE``."""
    folder = tmp_path_factory.mktemp("programs")
    files = {form: folder / f"{form}.pt2" for form in ("fused", "branched")}
    for form, file in files.items():
        torch.export.save(torch.export.export(network(form), (torch.randn(SHAPE),)), file)
    return files


@pytest.fixture(scope="session")
def programs(program_files: dict[str, Path]) -> dict[str, torch.export.ExportedProgram]:
    """Each form, loaded."""
    return {form: torch.export.load(file) for form, file in program_files.items()}


@pytest.fixture(scope="session")
def image() -> torch.Tensor:
    """A float32 input of shape ``SHAPE``."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def spec() -> Callable[..., ExportSpec]:
    """Make a spec: ``spec("fp16", normalization=True)``."""

    def make(precision: str = "fp32", **options: Any) -> ExportSpec:
        preprocessing = Preprocessing(16, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), CLASSES)
        return ExportSpec(precision, SHAPE, preprocessing, options)

    return make


@pytest.fixture(scope="session")
def unsupported() -> torch.export.ExportedProgram:
    """A program with an operation that no exporter knows."""

    class Unsupported(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_exp(x).flatten(1)

    return torch.export.export(Unsupported(), (torch.randn(SHAPE),))


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a backend's export in another process, folder and hash seed; give the folder with its files."""

    def run(backend: str, program: Path, precision: str, options: dict[str, Any]) -> Path:
        folder = tmp_path_factory.mktemp("elsewhere")
        code = (
            "import importlib, pathlib, torch\n"
            "from pipeline.artifacts.manifest import ExportSpec, Preprocessing\n"
            f"backend = importlib.import_module('pipeline.backends.{backend}.backend')\n"
            f"preprocessing = Preprocessing(16, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), {CLASSES!r})\n"
            f"spec = ExportSpec({precision!r}, {SHAPE!r}, preprocessing, {options!r})\n"
            f"files = [pathlib.Path({str(folder)!r}, name.format(form='fused')) for name in backend.FILES]\n"
            f"backend.export(torch.export.load({str(program)!r}), files, spec)\n"
        )
        project = Path(__file__).parents[3]
        environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(project)}
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder

    return run
