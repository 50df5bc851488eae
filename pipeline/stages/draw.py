"""Draw a network before and after fusing, side by side, as two SVG images.

Reads artifacts/<model>/checkpoint.safetensors. Writes structure.svg, the whole network with a box for each
block, and block.svg, the block in which fusing folds most, operation by operation. Made on demand:

    snakemake artifacts/<model>/structure.svg
"""

from pathlib import Path

from pipeline.artifacts import store
from pipeline.config.stages import NoSettings
from pipeline.models import checkpoints


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
        code=("pipeline.stages.draw", *checkpoints.code_modules(checkpoint)),
        packages=("torch", "pygraphviz"),
        build=lambda places, _: _draw(checkpoint, places),
    )


def _draw(checkpoint: Path, places: dict[str, Path]) -> None:
    import torch

    from repnets.drawing import svg
    from repnets.fusion.engine import fuse

    svg.require_graphviz()  # before the work is done
    model, header = checkpoints.load_model(checkpoint)
    example = tuple(map(torch.zeros, header.preprocessing.shapes(1)))
    shown = svg.scene(example, fuse(model, example))
    name = svg.busiest_block(shown)
    title = f"{header.arch} {name}".strip()
    places["structure"].write_text(svg.draw_network(shown, header.arch))
    places["block"].write_text(svg.draw_block(shown, name, title))
