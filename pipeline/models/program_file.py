"""Read and write .pt2 files, which contain a program of torch.export. No other module of the pipeline does."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import regular_file
from pipeline.errors import InputError, first_line, reading
from pipeline.models import program_archive
from pipeline.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LINEAGE = "lineage.json"
_LINEAGE_ROOM = 1 << 20  # bytes


def read(file: Path) -> "tuple[ExportedProgram, dict[str, Any]]":
    """A program, and its lineage where this pipeline wrote it, as `write` returned it; or empty.

    The file is read once; nothing in it is run (see `program_archive`).

    Raises:
        InputError: the file is missing, damaged, of another kind, or of another version of torch; it holds more than
            a network, which would run code.
    """
    import torch

    _require_archive(file)
    extra = {_LINEAGE: ""}
    content = file.read_bytes()
    with quiet():
        import torch.ao.quantization.fx._decomposed  # the operators of quantized programs

        try:
            program_archive.require_safe(content)
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                program_archive.require_one_folder(archive.namelist())
            program = torch.export.load(io.BytesIO(content), extra_files=extra)
            lineage = _lineage(extra[_LINEAGE])
        except program_archive.UnsafeError as error:
            raise InputError(program_archive.unsafe(file, error)) from None
        except Exception as error:  # torch's readers raise many kinds
            raise InputError(
                f"{file} is no torch.export program that torch {torch.__version__} can read ({first_line(error)}). "
                "Build it again with the installed version."
            ) from error
    return program, lineage


def read_lineage(file: Path) -> dict[str, Any]:
    """The lineage alone, as `read` gives it, without torch and without the program.

    Raises:
        InputError: the file is missing, or no archive.
    """
    _require_archive(file)
    with reading(f"{file}: its {_LINEAGE}", "Build it again."), zipfile.ZipFile(file) as archive:
        name = next((name for name in archive.namelist() if name.endswith(f"/extra/{_LINEAGE}")), None)
        if name is None:
            return {}
        with archive.open(name) as file_of_lineage:
            return _lineage(file_of_lineage.read(_LINEAGE_ROOM))


def write(program: "ExportedProgram", file: Path, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Write a program.

    Args:
        program: from `repnets.capture`.
        file: where it goes.
        lineage: what it was made of, as JSON types.

    Returns:
        The lineage as it is in the file: with ``free``, which says the sizes that the program takes. Each axis that is
        free, ``batch``, ``height`` or ``width``, has ``min`` and ``step``: it takes min, min + step, and so on. An axis
        that is not named is fixed.
    """
    import torch

    from repnets.fusion.sizes import by_name, free_sizes

    rank = program.example_inputs[0][0].dim()
    free = {name: asdict(size) for name, size in by_name(free_sizes(program), rank).items()}
    written = {**lineage, "free": free}
    with file.open("wb") as stream:  # of a path torch wants the suffix
        torch.export.save(program, stream, extra_files={_LINEAGE: json.dumps(written)})
    return written


def _lineage(content: str | bytes) -> dict[str, Any]:
    lineage = json.loads(content or "{}")
    if not isinstance(lineage, dict):
        raise ValueError(f"{_LINEAGE} holds no object")
    return lineage


def _require_archive(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"{file} does not exist. Build it first: snakemake {file}")
    if not regular_file.is_zip(file):
        raise InputError(f"{file} is no torch.export program, or was cut short. Build it again.")
