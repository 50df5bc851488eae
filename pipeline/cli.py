"""The command `repnets`: networks, checkpoints for other tools, and exported files held against each other."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import stage
from pipeline.commands.check import check
from pipeline.commands.convert import LAYOUTS, SUFFIXES, convert
from pipeline.commands.models import models

_CONVERT = """\
Write the weights of a RepVGG or MobileOne under the names that another tool knows them by.

CHECKPOINT is one of
  artifacts/<model>/checkpoint.safetensors   what this pipeline trained, with all branches
  artifacts/<model>/fused.pt2                what it folded
  a .safetensors, .pth or .pt                of this project, of the authors (official) or of timm, in the training
                                             or the deploy form; its layout is recognised, and no code in it runs

--layout is one of
  official, timm                             with all branches, to train on
  official-deploy, timm-deploy               each block one convolution; a network with branches is folded first
  repnets                                    this project's names; the form stays as it is

Every tensor must be there and no other, or nothing is written. OUTPUT holds tensors by name and nothing else: the
classes and the preprocessing stay in checkpoint.safetensors.

examples:
  repnets convert artifacts/mine/checkpoint.safetensors mine.pth --layout official
  repnets convert artifacts/mine/fused.pt2 mine-deploy.pth --layout official-deploy
  repnets convert RepVGG-A0-train.pth a0.safetensors --layout repnets
"""

_FILES = """\
Files are known by their suffix:
  .pte          by ExecuTorch
  .onnx         by ONNX Runtime
  .engine       by TensorRT, on the GPU that it was built for
  .mlpackage    {coreml}
  .pt2          by PyTorch, eagerly: artifacts/<model>/fused.pt2, or any torch.export program
"""

_CHECK = f"""\
Put the same images through two exported files on this machine, and hold the largest difference of their logits to
a tolerance. FILE is the one in question, --against the one that is right.

{_FILES.format(coreml="by an evaluator of saved ML programs, on any system")}
Without --images or --split they are fed random normal images. Real ones are prepared as the manifest.json beside
one of the files says. The tolerance is that of the lower precision, which the manifest.json names too. Where the
files differ by more, and both can tell, the first layer that departs is named.

Exit code 0: they agree. 1: they do not, or a runtime is not here or failed. 2: a file cannot be used.

examples:
  repnets check targets/executorch/toy/fused.pte --against artifacts/toy/fused.pt2
  repnets check targets/tensorrt/toy/fused.onnx --against targets/executorch/toy/fused.pte --split artifacts/split.json
  repnets check mine.onnx --against fused.pt2 --images photos --tolerance 1e-3
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0; 2 where what was given is at fault; 1 where a gate or tool failed."""
    options = vars(_parser().parse_args(argv))
    act, debug = options.pop("act"), options.pop("debug")
    return stage.answered(lambda: act(**options), debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="repnets",
        description="Networks, checkpoints and exported files. What is built and measured for a target is asked of "
        "snakemake; see README.md.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_models(_command(commands, models, "list the networks that `arch:` in config.yaml can name"))
    _add_convert(_command(commands, convert, "write a checkpoint for another tool, or read one of it", _CONVERT))
    _add_check(_command(commands, check, "compare what two exported files compute", _CHECK))
    return parser


def _command(
    commands: argparse._SubParsersAction, act: Callable[..., None], text: str, description: str | None = None
) -> argparse.ArgumentParser:
    """A command whose options are the parameters of the function that does its work."""
    command = commands.add_parser(
        act.__name__,
        help=text,
        description=description or text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(act=act)
    return command


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument("--parameters", action="store_true", help="count them, which takes some seconds")


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="CHECKPOINT", help="the file to read")
    command.add_argument("output", type=Path, metavar="OUTPUT", help=f"the file to write: {', '.join(SUFFIXES)}")
    command.add_argument("--layout", choices=LAYOUTS, required=True, help="the names to write")
    command.add_argument("--arch", metavar="NAME", help="the network; default: what the file says, or what fits it")


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=Path, metavar="FILE", help="the exported file in question")
    command.add_argument("--against", type=Path, required=True, metavar="FILE", help="the one that is right")
    fed = command.add_mutually_exclusive_group()
    fed.add_argument("--images", type=Path, metavar="FOLDER", help="feed the images of a folder")
    fed.add_argument("--split", type=Path, metavar="FILE", help="feed the validation images of a split.json")
    _add_image_size(command)
    command.add_argument("--tolerance", type=float, metavar="T", help="largest difference, of the largest logit")
    command.add_argument("--exact", action="store_true", help="both in float32 on the weights as they are stored")
    command.add_argument("--json", type=Path, dest="document", metavar="FILE", help="write the figures as well")


def _add_image_size(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="where the files take any; default: a size they were made at"
    )


if __name__ == "__main__":
    sys.exit(main())
