"""The command `repnets`: projects, networks, checkpoints for other tools, exported files compared, and devices."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import exit_codes, packaged
from pipeline.artifacts.manifest import ImageSize
from pipeline.benchmark.interleaved import Until
from pipeline.cli import compare as compares
from pipeline.cli import doctor as doctors
from pipeline.cli import export as exports
from pipeline.cli import fuse as fuses
from pipeline.cli import init as inits
from pipeline.cli import ship as ships
from pipeline.cli import store as stores
from pipeline.cli.bench import bench
from pipeline.cli.check import check
from pipeline.cli.convert import LAYOUTS, SUFFIXES, convert
from pipeline.cli.models import models
from pipeline.cli.verify_tree import HELP as VERIFY_TREE_HELP
from pipeline.cli.verify_tree import verify_tree
from pipeline.errors import nearest

_CONVERT = """\
Write the weights of a RepVGG or MobileOne under the names that another tool knows them by.

CHECKPOINT is one of
  artifacts/<model>/checkpoint.safetensors   trained by this pipeline, with all branches
  artifacts/<model>/fused.pt2                the fused network
  a .safetensors, .pth, .pt or .ckpt         of this project, of the authors (official) or of timm, in the training
                                             or the deploy form; its layout is recognised, and no code in it runs

--layout is one of
  official, timm                             with all branches, to continue training
  official-deploy, timm-deploy               each block one convolution; a network with branches is folded first
  repnets                                    this project's names; the form is not changed

Nothing is written if a tensor is missing or surplus. OUTPUT contains only tensors by name: the classes and the
preprocessing stay in checkpoint.safetensors.

examples:
  repnets convert artifacts/mine/checkpoint.safetensors mine.pth --layout official
  repnets convert artifacts/mine/fused.pt2 mine-deploy.pth --layout official-deploy
  repnets convert RepVGG-A0-train.pth a0.safetensors --layout repnets
"""

_FILES = """\
The suffix of a file selects its runtime:
  .pte          ExecuTorch
  .onnx         ONNX Runtime
  .xml          OpenVINO
  .engine       TensorRT, on the GPU that the engine was built for
  .mlpackage    {coreml}
  .pt2          PyTorch, eagerly: artifacts/<model>/fused.pt2, or any torch.export program
"""

_CHECK = f"""\
Run two exported files on the same images on this machine, and compare the largest difference of their logits with a
tolerance. FILE is the file to check, --against the file that is taken as correct.

{_FILES.format(coreml="an evaluator of saved ML programs, on any system")}
Without --images or --split the input is random normal numbers. Images are preprocessed as the manifest.json beside
one of the files says. The default tolerance is that of the lower of the two precisions, which manifest.json also names.
If the files differ by more, the first layer whose output differs is named, where both runtimes give the outputs of
layers.

Exit code 0: they agree. 1: they differ, or a runtime is missing or failed. 2: a file cannot be used.

examples:
  repnets check targets/executorch/toy/fused.pte --against artifacts/toy/fused.pt2
  repnets check targets/tensorrt/toy/fused.onnx --against targets/executorch/toy/fused.pte --split artifacts/split.json
  repnets check mine.onnx --against fused.pt2 --images photos --tolerance 1e-3
"""

_BENCH = f"""\
Time exported files on this machine, each with its own runtime and in processes of its own, in turn (A B A B), and print
a table. The speed-up of each file is over the first file: the median of the paired ratios, with a 95 % interval.

{_FILES.format(coreml="Core ML, on a Mac")}
A file whose runtime is not on this machine is listed as unavailable, with the remedy; no other runtime is timed in its
place. Memory is the increase of the process's resident memory. A warning is printed if other programs kept the machine
busy.

Exit code 0: a file was timed. 1: none could be timed, or a runtime failed. 2: a file cannot be used.

examples:
  repnets bench targets/executorch/toy/branched.pte targets/executorch/toy/fused.pte
  repnets bench artifacts/toy/fused.pt2 targets/tensorrt/toy/fused.onnx targets/executorch/toy/fused.pte --threads 1,2
"""


_STDOUT = Path("-")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0; 2 for a mistake in the input; 1 if a gate, tool or device failed."""
    parser, commands = _parser()
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-") and words[0] not in commands:
        parser.error(f"there is no command `{words[0]}`{nearest(words[0], commands)}")
    options = vars(parser.parse_args(words))
    act, debug = options.pop("act"), options.pop("debug")
    told = sys.stdout
    if options.get("document") == _STDOUT:  # then the tables go to stderr
        told, options["document"] = sys.stderr, Path("/dev/stdout")
    try:
        with contextlib.redirect_stdout(told):
            code = exit_codes.answered(lambda: act(**options), debug)
            told.flush()
        return code
    except BrokenPipeError:  # whoever reads has enough, such as `| head`; what is left to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """Of the command line, and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="repnets",
        description="Networks, checkpoints, exported files and devices. snakemake builds and measures the targets; "
        "see README.md.",
    )
    parser.add_argument("--version", action="version", version=f"repnets {packaged.version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_init(_command(commands, inits.init, "write a project into a folder of your own", inits.HELP))
    _add_export(_command(commands, exports.export, "export a network for devices, proved", exports.HELP))
    _add_fuse(_command(commands, fuses.fuse, "fold a network, prove that nothing changed, and write it", fuses.HELP))
    _add_models(_command(commands, models, "list the networks that `arch:` in config.yaml can name"))
    _add_convert(_command(commands, convert, "convert a checkpoint to the layout of another tool", _CONVERT))
    _add_check(_command(commands, check, "compare what two exported files compute", _CHECK))
    _add_verify_tree(
        _command(commands, verify_tree, "say whether everything built is what its proofs are of", VERIFY_TREE_HELP)
    )
    _add_bench(_command(commands, bench, "time exported files against each other", _BENCH))
    _add_compare(_command(commands, compares.compare, "compare two builds of a project", compares.HELP))
    _add_doctor(
        _command(commands, doctors.doctor, "say what this machine and devices can build, check and bench", doctors.HELP)
    )
    _add_store(_command(commands, stores.store, "look after the store of results", stores.HELP))
    _add_ship(_command(commands, ships.ship, "install a bundle on a device, or roll back", ships.SHIP_HELP))
    _add_devices(_command(commands, ships.devices, "list what is installed on a device", ships.DEVICES_HELP))
    return parser, list(commands.choices)


def _command(
    commands: argparse._SubParsersAction, act: Callable[..., None], text: str, description: str | None = None
) -> argparse.ArgumentParser:
    """A command whose options are the parameters of the function that does its work."""
    command = commands.add_parser(
        act.__name__.replace("_", "-"),
        help=text,
        description=description or text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(act=act)
    return command


def _add_init(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "folder", type=Path, nargs="?", default=Path(), metavar="FOLDER", help="of the project; default: this one"
    )
    command.add_argument("--data", type=Path, metavar="FOLDER", help="pictures, in class folders or without classes")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="a trained network")
    command.add_argument("--arch", metavar="NAME", help="the network; default: the checkpoint's, or repvgg_a0")
    command.add_argument(
        "--target", action="append", dest="targets", metavar="NAME", help="of these that are shipped; default: all"
    )
    command.add_argument("--force", action="store_true", help="replace files that exist")


def _add_export(command: argparse.ArgumentParser) -> None:
    _add_source(command)
    command.add_argument(
        "--to", type=_names, required=True, metavar="TARGET[,TARGET]", help="coreml, executorch, tensorrt, openvino"
    )
    command.add_argument("--int8", action="store_true", help="an int8 file as well, of each; needs --calibrate")
    command.add_argument("--calibrate", type=Path, metavar="FOLDER", help="pictures; no labels are needed")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="of the project; default: SOURCE's name-export")


def _add_fuse(command: argparse.ArgumentParser) -> None:
    _add_source(command)
    command.add_argument("output", type=Path, metavar="OUTPUT", help=f"the file to write: {', '.join(fuses.SUFFIXES)}")


def _add_source(command: argparse.ArgumentParser) -> None:
    """A network of the user's; see `sources.meant`."""
    command.add_argument("source", metavar="SOURCE", help="a checkpoint, a network or a program")
    command.add_argument("--arch", metavar="NAME", help="the network of a checkpoint that does not tell it")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="the weights of a network")
    command.add_argument("--classes", type=int, metavar="N", help="of a network without a checkpoint")
    command.add_argument(
        "--size", type=_image_size, metavar="PIXELS", help="a side, or HEIGHTxWIDTH; default: the checkpoint's, or 224"
    )


def _names(text: str) -> list[str]:
    """Names with commas between them."""
    if not (names := [name.strip() for name in text.split(",") if name.strip()]):
        raise ValueError
    return names


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--parameters", action="store_true", help="also list the number of parameters, which takes some seconds"
    )


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="CHECKPOINT", help="the file to read")
    command.add_argument("output", type=Path, metavar="OUTPUT", help=f"the file to write: {', '.join(SUFFIXES)}")
    command.add_argument("--layout", choices=LAYOUTS, required=True, help="the names to write")
    command.add_argument("--arch", metavar="NAME", help="the network; default: the one that the file names or fits")


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=Path, metavar="FILE", help="the exported file to check")
    command.add_argument(
        "--against", type=Path, required=True, metavar="FILE", help="the file that is taken as correct"
    )
    fed = command.add_mutually_exclusive_group()
    fed.add_argument("--images", type=Path, metavar="FOLDER", help="use the images of a folder as input")
    fed.add_argument("--split", type=Path, metavar="FILE", help="use the validation images of a split.json as input")
    _add_image_size(command)
    command.add_argument("--tolerance", type=float, metavar="T", help="largest difference, of the largest logit")
    command.add_argument("--exact", action="store_true", help="both in float32 on the weights as they are stored")
    command.add_argument(
        "--json", type=_output, dest="document", metavar="FILE", help="write the figures as well; -: to stdout"
    )


def _add_verify_tree(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "folder", type=Path, nargs="?", default=Path(), metavar="FOLDER", help="of the project; default: this one"
    )


def _add_bench(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "paths", type=Path, nargs="+", metavar="FILE", help="exported files; the first is the baseline"
    )
    command.add_argument(
        "--threads", type=_numbers, default=(1,), metavar="N[,M]", help="for each runtime, one or several; default: 1"
    )
    _add_image_size(command)
    command.add_argument(
        "--min-runs", type=_number, metavar="N", help=f"of each file, at least; default: {Until.min_runs}"
    )
    command.add_argument(
        "--max-seconds", type=float, metavar="S", help=f"of all timed runs together; default: {Until.max_seconds:g}"
    )
    command.add_argument(
        "--json", type=_output, dest="document", metavar="FILE", help="write the figures as well; -: to stdout"
    )


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("before", type=Path, metavar="BEFORE", help="folder of a project that is built")
    command.add_argument("after", type=Path, metavar="AFTER", help="another, or the same at another commit")
    command.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="how much worse is allowed")
    command.add_argument("--limits", type=Path, metavar="FILE", help="the same in YAML")
    command.add_argument(
        "--json", type=_output, dest="document", metavar="FILE", help="write every figure; -: to stdout"
    )


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("names", nargs="*", metavar="DEVICE", help="local, ssh://user@host:port, adb:SERIAL")
    command.add_argument("--target", action="append", dest="targets", metavar="NAME", help="of these; default: all")
    command.add_argument("--config", type=Path, default=Path("config.yaml"), dest="settings", metavar="FILE")
    _add_python(command)
    command.add_argument(
        "--json", type=_output, dest="document", metavar="FILE", help="write the same as JSON; -: to stdout"
    )


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", nargs="?", choices=stores.ACTIONS, default="list", help="default: %(default)s")
    command.add_argument("--older-than", type=stores.seconds_of, metavar="TIME", help="of prune: 12h, 30d, 4w")
    command.add_argument("--to", type=stores.bytes_of, metavar="SIZE", help="of prune: 500MB, 5GB")
    command.add_argument("--dry-run", action="store_true", help="of prune: delete nothing")


def _add_ship(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="a .tar of dist/; with --rollback also a name")
    command.add_argument("device", nargs="?", metavar="DEVICE", help="local, ssh://user@host:port, adb:SERIAL")
    command.add_argument("--rollback", action="store_true", help="make the version before current again")
    command.add_argument(
        "--layout", type=Path, metavar="FOLDER", help="write the files there for an app's project instead"
    )
    command.add_argument(
        "--require-signature", type=Path, metavar="FILE", help="ssh's allowed_signers: refuse what none of them signed"
    )
    command.add_argument(
        "--no-selftest",
        action="store_false",
        dest="selftest",
        help="do not run the self-test, for a device without the runtime",
    )
    _add_python(command)
    command.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="time limit of the self-test; default: a minute more than that of its runtime",
    )


def _add_devices(command: argparse.ArgumentParser) -> None:
    command.add_argument("device", metavar="DEVICE", help="local, ssh://user@host:port, adb:SERIAL")
    command.add_argument(
        "--json", type=_output, dest="document", metavar="FILE", help="write the same as JSON; -: to stdout"
    )


def _add_python(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--python", default="python3", metavar="PROGRAM", help="the Python on the device; default: %(default)s"
    )


def _seconds(text: str) -> float:
    if not (seconds := float(text)) > 0:
        raise ValueError
    return seconds


def _number(text: str) -> int:
    """A whole number from 1 on, as argparse reads it."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _output(text: str) -> Path:
    """A file that can be written, or `-`, standard output; checked before minutes are spent on its content."""
    path = Path(text)
    if path == _STDOUT:
        return path
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    return path


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_number, text.split(",")))


def _image_size(text: str) -> ImageSize:
    """`224`, or `96x160` of height and width."""
    sides = tuple(map(_number, text.split("x", 1)))
    return sides if len(sides) == 2 else sides[0]


def _add_image_size(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--image-size",
        type=_image_size,
        metavar="PIXELS",
        help="input size for files that take any, a side or HEIGHTxWIDTH; default: a size that they were made for",
    )


if __name__ == "__main__":
    sys.exit(main())
