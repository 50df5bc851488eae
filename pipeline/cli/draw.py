"""`repnets draw`: a picture of a network before and after folding."""

from pathlib import Path

from pipeline.artifacts.manifest import ImageSize
from pipeline.cli import output_file, sources
from pipeline.errors import shown

HELP = f"""\
Draw a network before and after folding, as an SVG image that browsers show and zoom: each box is a block, and names
what is folded into it. --block NAME draws one module operation by operation; without it, the last line names the
module in which most is folded.

{sources.SOURCES.format(programs="a program of torch.export, of anyone; nothing in it is executed")}
It needs Graphviz, which comes with: pip install repnets[pictures]

Exit code 0: it was drawn. 2: a file or an option cannot be used, or Graphviz is not installed.

examples:
  repnets draw repvgg_a0 a0.svg
  repnets draw best.pth stage.svg --arch timm:repvit_m0_9 --block stages_1
"""


def draw(
    source: str,
    output: Path,
    *,
    block: str | None = None,
    size: ImageSize | None = None,
    arch: str | None = None,
    checkpoint: Path | None = None,
    classes: int | None = None,
) -> None:
    """Draw a network before and after folding.

    Args:
        source, arch, checkpoint, size, classes: as for `fuse`.
        output: an .svg.
        block: qualified name of the module to draw operation by operation; default: the whole network.

    Raises:
        InputError: the source cannot be used, or the output not be written.
        RepnetsError: Graphviz is not installed; there is no such block.
    """
    import repnets
    from repnets.drawing import svg

    output_file.require(output, [".svg"])
    svg.require_graphviz()  # before the work is done
    meant = sources.meant(source, arch, checkpoint)
    network = sources.opened(meant, classes, size)
    scene = svg.scene(network.example, repnets.fuse(network.model, network.example))
    title = " ".join(part for part in (meant.name, block) if part)
    picture = svg.draw_network(scene, title) if block is None else svg.draw_block(scene, block, title)
    with output_file.writing(output) as fresh:
        fresh.write_text(picture, encoding="utf-8")
    print(f"wrote {shown(output)}")
    if block is None and (busiest := svg.busiest_block(scene)):
        print(f"most is folded in `{busiest}`: --block {busiest} draws it operation by operation")
