"""The command line that every stage has: `python -m pipeline <stage> --help`.

A stage module has one public ``run(settings, *, <name>: Path, ...)``. The options of its command line are taken from
that signature, so that the two always agree.
"""

import argparse
import ast
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import backends, exit_codes, lifetime
from pipeline.config import schema, yaml_file
from pipeline.errors import InputError, nearest, quoted
from pipeline.models import resolve
from pipeline.stages.settings import settings_of

STAGES = (
    "split",
    "train",
    "adopt",
    "recalibrate",
    "reparameterize",
    "draw",
    "verify",
    "quantize",
    "samples",
    "export",
    "check",
    "reference",
    "bench",
    "race",
    "summarize",
    "report",
    "bundle",
)
"""Their names, which are those of their modules, in the order of the workflow."""


def by_name(argv: Sequence[str]) -> int:
    """Run the stage that the first argument names, with the other arguments as its options; see `main`."""
    about = {name: _first_sentence(name) for name in STAGES}
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="One stage of the pipeline. Snakemake runs them in order, each only when its inputs changed.",
        epilog="\n".join(["stages:", *(f"  {name:<16}{text}" for name, text in about.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", help="which one; STAGE --help tells its options")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of that stage")
    stage, *options = argv or ["--help"]
    if stage in STAGES:
        return main(import_module(f"pipeline.stages.{stage}").run, options)
    if stage.startswith("-"):
        parser.parse_args(argv or ["--help"])
    parser.error(f"there is no stage `{stage}`{nearest(stage, STAGES)}")


def _first_sentence(stage: str) -> str:
    """What a stage does, by its docstring, without importing it."""
    text = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{stage}.py").read_text()))
    return text.partition("\n")[0].rstrip(".:")


def main(run: Callable[..., Any], argv: Sequence[str]) -> int:
    """Parse a stage's options, run it, and turn errors into one paragraph and an exit code.

    Args:
        run: the stage's public function.
        argv: the options.

    Returns:
        0; 2 for a mistake in the input or the configuration; 1 for a failed gate, stage or device.
    """
    signature = inspect.signature(run)
    parser, paths = _parser(run, signature)
    options = parser.parse_args(argv)

    def act() -> None:
        lifetime.end_with_run()
        settings = _settings(options, signature.parameters["settings"].annotation)
        run(settings, **{name: getattr(options, name) for name in paths})

    return exit_codes.answered(act, options.debug)


def _parser(run: Callable[..., Any], signature: inspect.Signature) -> tuple[argparse.ArgumentParser, list[str]]:
    module = inspect.getmodule(run)
    stage = Path(inspect.getfile(run)).stem
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline {stage}",
        description=inspect.getdoc(module),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    paths = [name for name, one in signature.parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in paths:
        parameter = signature.parameters[name]
        many, is_needed = parameter.annotation == list[Path], parameter.default is inspect.Parameter.empty
        flag = f"--{name.replace('_', '-')}"
        default = None if is_needed else parameter.default
        nargs = "+" if many else None
        parser.add_argument(flag, type=Path, required=is_needed, nargs=nargs, default=default, metavar="PATH")
    parser.add_argument("--settings", metavar="JSON", help="this stage's settings; default: read from --config")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--model", metavar="NAME", help="the model in config.yaml whose settings are meant")
    parser.add_argument("--target", metavar="NAME", help="the target whose settings are meant")
    parser.add_argument("--precision", metavar="NAME", help="which candidate of a target of `precision: auto`")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(stage=stage)
    return parser, paths


def _settings(options: argparse.Namespace, model: type[schema.Strict]) -> schema.Strict:
    if options.settings is None:
        loaded = resolve.load(yaml_file.read(options.config), backends.rules(), options.config.parent)
        return settings_of(options.stage, loaded, options.model, options.target, options.precision)
    try:
        return model.model_validate_json(options.settings)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        raise InputError(f"--settings: `{schema.dotted(problem['loc'])}`: {quoted(problem['msg'])}.") from None
