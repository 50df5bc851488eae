"""The command line that every stage has: `python -m pipeline.<stage> --help`.

A stage module has one public ``run(settings, *, <name>: Path, ...)``. Its options are read off that
signature, so a stage's function and its command line cannot drift apart.
"""

import argparse
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import config, strict
from pipeline.errors import DeviceError, GateError, InputError, StageError
from repnets.errors import RepnetsError


def main(run: Callable[..., Any], argv: Sequence[str] | None = None) -> int:
    """Read a stage's options, run it, and turn what goes wrong into one paragraph and an exit code.

    Args:
        run: the stage's public function.
        argv: the options; default ``sys.argv[1:]``.

    Returns:
        0, 2 where the input or the configuration is at fault, 1 for a failed gate, stage or device.
    """
    signature = inspect.signature(run)
    parser, paths = _parser(run, signature)
    options = parser.parse_args(argv)

    def act() -> None:
        settings = _settings(options, signature.parameters["settings"].annotation)
        run(settings, **{name: getattr(options, name) for name in paths})

    return answered(act, options.debug)


def answered(act: Callable[[], None], debug: bool) -> int:
    """Do something, and turn what goes wrong into one paragraph on stderr and an exit code.

    Args:
        act: what to do.
        debug: also show the traceback.

    Returns:
        0, 2 where the input or the configuration is at fault, 1 for a failed gate, stage or device.
    """
    try:
        act()
    except (InputError, GateError, StageError, DeviceError, RepnetsError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except FileNotFoundError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error.filename} does not exist. Build it first: snakemake {error.filename}", file=sys.stderr)
        return 2
    return 0


def _parser(run: Callable[..., Any], signature: inspect.Signature) -> tuple[argparse.ArgumentParser, list[str]]:
    module = inspect.getmodule(run)
    stage = Path(inspect.getfile(run)).stem
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline.{stage}",
        description=inspect.getdoc(module),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    paths = [name for name, one in signature.parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in paths:
        parameter = signature.parameters[name]
        many, is_needed = parameter.annotation == list[Path], parameter.default is inspect.Parameter.empty
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=Path, required=is_needed, nargs="+" if many else None, metavar="PATH")
    parser.add_argument("--settings", metavar="JSON", help="this stage's settings; default: read from --config")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--model", metavar="NAME", help="the model in config.yaml whose settings are meant")
    parser.add_argument("--target", metavar="NAME", help="the target whose settings are meant")
    parser.add_argument("--precision", metavar="NAME", help="which candidate of a target of `precision: auto`")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(stage=stage)
    return parser, paths


def _settings(options: argparse.Namespace, model: type[strict.Strict]) -> strict.Strict:
    if options.settings is None:
        loaded = config.load(strict.read_yaml(options.config), options.config.parent)
        return config.settings_of(options.stage, loaded, options.model, options.target, options.precision)
    try:
        return model.model_validate_json(options.settings)
    except ValidationError as error:
        raise InputError(f"--settings: {' '.join(str(error).split())}") from None
