"""The command `repnets`: projects, networks, checkpoints for other tools, exported files compared, and devices."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import exit_codes, packaged
from pipeline.cli import bench, check, compare, convert, doctor, draw, export, fuse, init, models, options, ship, store
from pipeline.cli import project_folder as projects
from pipeline.cli import verify_tree as trees
from pipeline.errors import nearest

_COMMANDS = (
    (init.init, "write a project into a folder of your own", init.HELP),
    (export.export, "export a network for devices, proved", export.HELP),
    (fuse.fuse, "fold a network, prove that nothing changed, and write it", fuse.HELP),
    (draw.draw, "draw a network before and after folding", draw.HELP),
    (models.models, "list the networks that `arch:` in config.yaml can name", models.HELP),
    (convert.convert, "convert a checkpoint to the layout of another tool", convert.HELP),
    (check.check, "compare what two exported files compute", check.HELP),
    (trees.verify_tree, "say whether everything built is what its proofs are of", trees.HELP),
    (bench.bench, "time exported files against each other", bench.HELP),
    (compare.compare, "compare two builds of a project", compare.HELP),
    (projects.report, "say where the report of a project is, or open it", projects.REPORT_HELP),
    (doctor.doctor, "say what this machine and devices can build, check and bench", doctor.HELP),
    (store.store, "look after the store of results", store.HELP),
    (projects.clean, "delete what was built in a project", projects.CLEAN_HELP),
    (ship.ship, "install a bundle on a device, or roll back", ship.SHIP_HELP),
    (ship.devices, "list what is installed on a device", ship.DEVICES_HELP),
)
"""Each command: what does its work, a line about it, and its help. `options` has a function of the same name."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0; 2 for a mistake in the input; 1 if a gate, tool or device failed."""
    parser, commands = _parser()
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-") and words[0] not in commands:
        parser.error(f"there is no command `{words[0]}`{nearest(words[0], commands)}")
    given = vars(parser.parse_args(words))
    act, debug = given.pop("act"), given.pop("debug")
    told = sys.stdout
    if given.get("document") == options.STDOUT:  # then the tables go to stderr
        told, given["document"] = sys.stderr, Path("/dev/stdout")
    try:
        with contextlib.redirect_stdout(told):
            code = exit_codes.answered(lambda: act(**given), debug)
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
    for act, text, description in _COMMANDS:
        command = _command(commands, act, text, description)
        getattr(options, act.__name__)(command)
    return parser, list(commands.choices)


def _command(
    commands: argparse._SubParsersAction, act: Callable[..., None], text: str, description: str
) -> argparse.ArgumentParser:
    """A command whose options are the parameters of the function that does its work."""
    command = commands.add_parser(
        act.__name__.replace("_", "-"),
        help=text,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(act=act)
    return command


if __name__ == "__main__":
    sys.exit(main())
