"""Pictures that other stages drew: each network before and after folding, and its outputs on validation images."""

import base64
from collections.abc import Mapping
from pathlib import Path

from pipeline.report.page.built import Built
from pipeline.report.page.content import Picture, Section

MOST_BYTES = 2_500_000
"""Of all pictures together, so that the page stays under 5 MB."""
_EXTRA = ' It needs pip install "repnets[pictures]".'
_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def sections(built: Built) -> tuple[Section, Section]:
    """Both sections, with what is missing and how to get it."""
    structures = {name: model.structure for name, model in built.models.items()}
    samples = {name: model.samples for name, model in built.models.items()}
    structure, left = _shown(structures, "structure.svg", "{} in training, and folded", _EXTRA, MOST_BYTES)
    outputs, _ = _shown(samples, "samples.png", "What {} gives for validation images", "", left)
    return (
        Section("structure", "The graph before and after", pictures=structure[0], notes=structure[1]),
        Section("samples", "Outputs on sample images", pictures=outputs[0], notes=outputs[1]),
    )


def _shown(
    drawn: Mapping[str, Path | None], file: str, caption: str, extra: str, left: int
) -> tuple[tuple[list[Picture], list[str]], int]:
    """Pictures, remarks on those that are not here, and the bytes that are left."""
    pictures, notes = [], []
    for model, path in drawn.items():
        wanted = f"artifacts/{model}/{file}"
        size = path.stat().st_size * 4 // 3 if path else 0
        if path is None:
            notes.append(f"{model}: not drawn. To have it here: snakemake {wanted}, and then the report again.{extra}")
        elif size > left:
            notes.append(f"{model}: too large for this page. It is in {wanted}.")
        else:
            left -= size
            pictures.append(Picture(caption.format(model), _address(path)))
    return (pictures, notes), left


def _address(path: Path) -> str:
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
