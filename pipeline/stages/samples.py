"""Draw what a network gives for some validation images, on them: branched, fused and in int8, one below the other.

Reads artifacts/<model>/checkpoint.safetensors, fused.pt2 and, where there is one, quantized.pt2. Writes samples.png:
the images as the network sees them, then a row a form with the classes, boxes, masks or pictures of its task:

    snakemake artifacts/<model>/samples.png
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import store
from pipeline.config.stages import NoSettings
from pipeline.data import splits, transforms
from pipeline.errors import InputError
from pipeline.models import checkpoints, program_file, programs
from pipeline.models.accuracy import METRIC_PACKAGES, task_of

if TYPE_CHECKING:
    from collections.abc import Callable

_IMAGES = 6
_SIDE = 192  # pixels: at least the shorter side of an image in the picture


def run(
    settings: NoSettings, *, checkpoint: Path, split: Path, fused: Path, output: Path, quantized: Path | None = None
) -> None:
    """Draw the outputs of one network.

    Args:
        settings: none.
        checkpoint: artifacts/<model>/checkpoint.safetensors.
        split: artifacts/split.json.
        fused: artifacts/<model>/fused.pt2.
        output: where the picture goes.
        quantized: artifacts/<model>/quantized.pt2.

    Raises:
        InputError: nothing is known of what the network gives; the checkpoint was made with another split.
    """
    inputs = {"checkpoint": checkpoint, "split": split, "fused": fused}
    if quantized is not None:
        inputs["quantized"] = quantized
    store.cached(
        "samples",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={"samples": output},
        code=("pipeline.stages.samples", *checkpoints.code_modules(checkpoint)),
        packages=("torch", "torchvision", "pillow", *METRIC_PACKAGES),
        build=lambda places, _: _draw(inputs, places["samples"]),
    )


def _draw(inputs: dict[str, Path], place: Path) -> None:
    import torch
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    from repnets.outputs import named

    model, header = checkpoints.load_model(inputs["checkpoint"])
    images, preprocessing = splits.open_split(inputs["split"], header.data_digest), header.preprocessing
    task = task_of(images, preprocessing)
    if task is None:
        raise InputError(
            "nothing is known of what the network gives, so nothing of it can be drawn. Set `data.task`, or "
            "`data.classes` of a classifier; docs/tasks.md lists the tasks."
        )
    forms: dict[str, Callable[[torch.Tensor], Any]] = {} if header.is_folded else {"branched": model}
    programs_of = [name for name in ("fused", "quantized") if name in inputs]
    forms |= {name: programs.as_module(program_file.read(inputs[name])[0]) for name in programs_of}
    batch, _ = next(images.sample("val", _IMAGES).batches("val", preprocessing, _IMAGES))
    pictures = transforms.enlarged(transforms.pixels_of(batch, preprocessing), _SIDE)
    rows = [pictures]
    with torch.inference_mode():
        for form in forms.values():
            decoded = task.decode(list(named(form(batch)).values()))
            rows.append(torch.stack([task.draw(one, what) for one, what in zip(pictures, decoded, strict=True)]))
    grid = make_grid(torch.cat(rows), nrow=len(pictures), padding=4, pad_value=255)
    to_pil_image(grid).save(place, format="PNG")
    print(f"samples: {len(pictures)} validation images; rows: as they are, {', '.join(forms)}", flush=True)
