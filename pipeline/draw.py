"""Draw a network before and after fusing, side by side, as two SVG images.

Reads artifacts/<model>/checkpoint.safetensors. Writes structure.svg, the whole network with a box for each
block, and block.svg, the block in which fusing folds most, operation by operation. Made on demand:

    snakemake artifacts/<model>/structure.svg
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import checkpoints, stage, store
from pipeline.config import NoSettings


def run(settings: NoSettings, *, checkpoint: Path, structure: Path, block: Path) -> None:
    """Draw one network.

    Args:
        settings: none.
        checkpoint: artifacts/<model>/checkpoint.safetensors.
        structure: where the picture of the whole network goes.
        block: where the picture of one block goes.

    Raises:
        RepnetsError: pygraphviz is not installed; as for the stage `reparameterize`.
    """
    store.cached(
        "draw",
        settings=settings.model_dump(mode="json"),
        inputs={"checkpoint": checkpoint},
        outputs={"structure": structure, "block": block},
        code=("pipeline.draw", *checkpoints.code_modules(checkpoint)),
        packages=("torch", "pygraphviz"),
        build=lambda places, _: _draw(checkpoint, places),
    )


def _draw(checkpoint: Path, places: dict[str, Path]) -> None:
    import torch

    from repnets import picture
    from repnets.fusion import fuse

    picture.require_graphviz()  # before the work is done
    model, header = checkpoints.load_model(checkpoint)
    size = header["preprocessing"]["image_size"]
    example = torch.zeros(1, 3, size, size)
    shown = picture.scene(model, example, fuse(model, example))
    name = picture.busiest_block(shown)
    title = f"{header['arch']} {name}".strip()
    places["structure"].write_text(picture.draw_network(shown, header["arch"]))
    places["block"].write_text(picture.draw_block(shown, name, title))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this stage."""
    return stage.main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
