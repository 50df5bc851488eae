"""The options of each command of `repnets`, a function a command of the same name."""

import argparse
import re
from pathlib import Path

from pipeline.artifacts.manifest import ImageSize
from pipeline.benchmark.interleaved import Until
from pipeline.cli import convert as converts
from pipeline.cli import fuse as fuses
from pipeline.cli import store as stores

STDOUT = Path("-")
"""That a document goes to standard output."""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_DAYS = {"h": 1 / 24, "d": 1, "w": 7}


def init(command: argparse.ArgumentParser) -> None:
    _folder(command)
    command.add_argument("--data", type=Path, metavar="FOLDER", help="pictures, in class folders or without classes")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="a trained network")
    command.add_argument("--arch", metavar="NAME", help="the network; default: the checkpoint's, or repvgg_a0")
    command.add_argument(
        "--target", action="append", dest="targets", metavar="NAME", help="of these that are shipped; default: all"
    )
    command.add_argument("--force", action="store_true", help="replace files that exist")


def export(command: argparse.ArgumentParser) -> None:
    _source(command)
    command.add_argument(
        "--to", type=_names, required=True, metavar="TARGET[,TARGET]", help="coreml, executorch, tensorrt, openvino"
    )
    command.add_argument("--int8", action="store_true", help="an int8 file as well, of each; needs --calibrate")
    command.add_argument("--calibrate", type=Path, metavar="FOLDER", help="pictures; no labels are needed")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="of the project; default: SOURCE's name-export")


def fuse(command: argparse.ArgumentParser) -> None:
    _source(command)
    command.add_argument("output", type=Path, metavar="OUTPUT", help=f"the file to write: {', '.join(fuses.SUFFIXES)}")


def draw(command: argparse.ArgumentParser) -> None:
    _source(command)
    command.add_argument("output", type=Path, metavar="OUTPUT", help="the .svg to write")
    command.add_argument("--block", metavar="NAME", help="the module to draw; default: the whole network")


def _source(command: argparse.ArgumentParser) -> None:
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


def models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--parameters", action="store_true", help="also list the number of parameters, which takes some seconds"
    )


def convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="CHECKPOINT", help="the file to read")
    command.add_argument(
        "output", type=Path, metavar="OUTPUT", help=f"the file to write: {', '.join(converts.SUFFIXES)}"
    )
    command.add_argument("--layout", choices=converts.LAYOUTS, required=True, help="the names to write")
    command.add_argument("--arch", metavar="NAME", help="the network; default: the one that the file names or fits")


def check(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=Path, metavar="FILE", help="the exported file to check")
    command.add_argument(
        "--against", type=Path, required=True, metavar="FILE", help="the file that is taken as correct"
    )
    fed = command.add_mutually_exclusive_group()
    fed.add_argument("--images", type=Path, metavar="FOLDER", help="use the images of a folder as input")
    fed.add_argument("--split", type=Path, metavar="FILE", help="use the validation images of a split.json as input")
    _image_size_option(command)
    command.add_argument("--tolerance", type=float, metavar="T", help="largest difference, of the largest logit")
    command.add_argument("--exact", action="store_true", help="both in float32 on the weights as they are stored")
    _document(command, "write the figures as well")


def verify_tree(command: argparse.ArgumentParser) -> None:
    _folder(command)


def bench(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "paths", type=Path, nargs="+", metavar="FILE", help="exported files; the first is the baseline"
    )
    command.add_argument(
        "--threads", type=_numbers, default=(1,), metavar="N[,M]", help="for each runtime, one or several; default: 1"
    )
    _image_size_option(command)
    command.add_argument(
        "--min-runs", type=_number, metavar="N", help=f"of each file, at least; default: {Until.min_runs}"
    )
    command.add_argument(
        "--max-seconds", type=float, metavar="S", help=f"of all timed runs together; default: {Until.max_seconds:g}"
    )
    _document(command, "write the figures as well")


def compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("before", type=Path, metavar="BEFORE", help="folder of a project that is built")
    command.add_argument("after", type=Path, metavar="AFTER", help="another, or the same at another commit")
    command.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="how much worse is allowed")
    command.add_argument("--limits", type=Path, metavar="FILE", help="the same in YAML")
    _document(command, "write every figure")


def report(command: argparse.ArgumentParser) -> None:
    _folder(command)
    command.add_argument("--open", action="store_true", help="show it in the browser")


def clean(command: argparse.ArgumentParser) -> None:
    _folder(command)
    command.add_argument("--dry-run", action="store_true", help="delete nothing")


def doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("names", nargs="*", metavar="DEVICE", help="local, ssh://user@host:port, adb:SERIAL")
    command.add_argument("--target", action="append", dest="targets", metavar="NAME", help="of these; default: all")
    command.add_argument("--config", type=Path, default=Path("config.yaml"), dest="settings", metavar="FILE")
    _python(command)
    _document(command, "write the same as JSON")


def store(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", nargs="?", choices=stores.ACTIONS, default="list", help="default: %(default)s")
    command.add_argument("--older-than", type=_duration, metavar="TIME", help="of prune: 12h, 30d, 4w")
    command.add_argument("--to", type=_bytes, metavar="SIZE", help="of prune: 500MB, 5GB")
    command.add_argument("--dry-run", action="store_true", help="of prune: delete nothing")


def ship(command: argparse.ArgumentParser) -> None:
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
    _python(command)
    command.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="time limit of the self-test; default: a minute more than that of its runtime",
    )


def devices(command: argparse.ArgumentParser) -> None:
    command.add_argument("device", metavar="DEVICE", help="local, ssh://user@host:port, adb:SERIAL")
    _document(command, "write the same as JSON")


def _document(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--json", type=_output, dest="document", metavar="FILE", help=f"{text}; -: to stdout")


def _folder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "folder", type=Path, nargs="?", default=Path(), metavar="FOLDER", help="of the project; default: this one"
    )


def _python(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--python", default="python3", metavar="PROGRAM", help="the Python on the device; default: %(default)s"
    )


def _seconds(text: str) -> float:
    if not (seconds := float(text)) > 0:
        raise ValueError
    return seconds


def _bytes(text: str) -> int:
    """`500MB` or `5GB` as bytes, as argparse reads it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"`{text}` is no size; write 500MB or 5GB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _duration(text: str) -> float:
    """`12h`, `30d` or `4w` as seconds, as argparse reads it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"`{text}` is no time; write 12h, 30d or 4w")
    return float(found[1]) * _DAYS[found[2]] * 86_400


def _number(text: str) -> int:
    """A whole number from 1 on, as argparse reads it."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _output(text: str) -> Path:
    """A file that can be written, or `-`, standard output; checked before minutes are spent on its content."""
    path = Path(text)
    if path == STDOUT:
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


def _image_size_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--image-size",
        type=_image_size,
        metavar="PIXELS",
        help="input size for files that take any, a side or HEIGHTxWIDTH; default: a size that they were made for",
    )
