"""`repnets export`: from a checkpoint or a network to the files for devices, proved, in one command."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import backends, exit_codes
from pipeline.artifacts import failures
from pipeline.artifacts.manifest import ImageSize
from pipeline.cli import discovery, init, sources
from pipeline.cli.export_result import Asked, tell
from pipeline.cli.project_config import config_text
from pipeline.config import yaml_file
from pipeline.errors import GateError, InputError, StageError, nearest, shown
from pipeline.models import resolve
from pipeline.stages import progress

HELP = f"""\
Export a network for devices: fold it, prove the fold, export a file for each of --to, and check each file against the
network, on this machine. Prints a line as each step begins and ends, and at last what was made, proved and refused.

{sources.SOURCES.format(programs="a fused.pt2 of repnets, of RepVGG or MobileOne")}
--to is one or several, with commas between them: coreml, executorch, tensorrt, openvino.
--int8 makes an int8 file beside each. Its ranges come from pictures: --calibrate FOLDER, a hundred or more of what the
device will see, in class folders or without classes. Files are then checked on them too; else on generated images.

All is done in a project, a folder like that of `repnets init`; default: ./<name of SOURCE>-export. Run again, it goes
on, and builds nothing twice. Its config.yaml is written anew when the options change, unless it was edited. To time the
files: `snakemake all` there; to pack them for devices: `snakemake bundles`.

Exit code 0: all that was asked for was made and proved. 1: something was refused, the rest was made. 2: an option or a
file cannot be used.

examples:
  repnets export RepVGG-A0-train.pth --to coreml,executorch
  repnets export best.pth --arch timm:repvit_m0_9 --to tensorrt --int8 --calibrate /data/photos --size 224
  repnets export mynets.small:build --checkpoint small.pth --to executorch --size 96x160 --output small
  repnets export torchvision:resnet18 --to coreml
"""

_NEEDS_PICTURES = (
    "int8 takes its ranges from pictures, and there are none. Give a folder of them: --calibrate FOLDER; a hundred or "
    "more of what the device will see, without labels."
)
_RANDOM = (
    "WARNING: the weights are RANDOM, since no --checkpoint was given. The files show what can be exported and how "
    "fast it\n         is; what they answer means nothing."
)
_SEAL = "# Written by `repnets export`, {}. Once it is edited, it is left as it is.\n"
_UNSHIPPED = """\
# {title}
backend: {backend}
precision: {precision}
baseline: none
"""
_FLOAT = "fp32"  # of a target that is not shipped


def export(
    source: str,
    to: Sequence[str],
    *,
    int8: bool = False,
    calibrate: Path | None = None,
    size: ImageSize | None = None,
    output: Path | None = None,
    arch: str | None = None,
    checkpoint: Path | None = None,
    classes: int | None = None,
) -> None:
    """Export a network for some targets, and print what was made, proved and refused.

    Args:
        source, arch, checkpoint: see `sources.meant`.
        to: names of targets, or of backends.
        int8: also in int8.
        calibrate: a folder of pictures.
        size: of the input, pixels; default: the checkpoint's, else 224.
        output: folder of the project.
        classes: see `sources.weights`.

    Raises:
        InputError: an option, the source or the pictures cannot be used; nothing was built.
        GateError: something was refused.
        StageError: Snakemake itself failed.
    """
    wanted = _targets(to, int8)
    refused = {name: _NEEDS_PICTURES for name, text in wanted.items() if _is_int8(text) and calibrate is None}
    meant = sources.meant(source, arch, checkpoint)
    folder = output or Path(f"{re.sub(r'[^A-Za-z0-9._-]', '_', meant.name)}-export")
    init.require_project_can_be(folder)
    images = discovery.pictures(calibrate) if calibrate else None
    weights = sources.weights(meant, folder, classes)
    text = config_text(folder, images, weights, image_size=size)
    print(f"project: {shown(folder)}")
    init.tell_found(images, weights)
    if meant.checkpoint is None and meant.program is None:
        print(_RANDOM)
    _write_project(folder, text, {name: one for name, one in wanted.items() if name not in refused})
    configured = resolve.load(yaml_file.read(folder / "config.yaml"), backends.rules(), folder)
    asked = [
        Asked(name, model, _is_int8(wanted[name]), refused.get(name)) for name in wanted for model in configured.models
    ]
    files = [f"{one.folder}/check.json" for one in asked if one.refusal is None]
    if files:
        _run(folder, files, weights.arch)
    lost = tell(folder, asked)
    if lost:
        raise GateError(f"{len(lost)} of {len(asked)} refused: {', '.join(lost)}. The reasons are above.")


def _targets(to: Sequence[str], int8: bool) -> dict[str, str]:
    """The target.yaml of each target that is asked for, without a baseline, by its name."""
    shipped = init.shipped_targets()
    names = list(dict.fromkeys(name for one in to for name in ([one, f"{one}-int8"] if int8 else [one])))
    names = [name.removesuffix("-int8") if name.endswith("-int8-int8") else name for name in names]
    found = {}
    for name in dict.fromkeys(names):
        backend = name.removesuffix("-int8")
        if name in shipped:
            found[name] = re.sub(
                r"(?m)^baseline: .*$",
                "baseline: none          # branched, fused: export and time that form of the network as well",
                init.shipped_text(f"targets/{name}/target.yaml"),
            )
        elif backend in _backends():
            precision = "int8" if name != backend else _FLOAT
            title = backends.load(backend).title
            found[name] = _UNSHIPPED.format(title=title, backend=backend, precision=precision)
        else:
            raise InputError(f"--to: there is no target `{name}`{nearest(name, sorted({*shipped, *_backends()}))}")
    return found


def _backends() -> list[str]:
    """Names of the backends that have targets."""
    return list(backends.rules())


def _is_int8(text: str) -> bool:
    return re.search(r"(?m)^precision: int8\b", text) is not None


def _write_project(folder: Path, text: str, targets: Mapping[str, str]) -> None:
    """Write what is not there yet; config.yaml anew where the options changed and nobody edited it."""
    files = init.project_files() | {f"targets/{name}/target.yaml": one for name, one in targets.items()}
    fresh = {name: one for name, one in files.items() if not (folder / name).exists()}
    sealed = _SEAL.format(_digest(text)) + text
    config = folder / "config.yaml"
    there = config.read_text(encoding="utf-8") if config.exists() else None
    if there is None or (there != sealed and _is_untouched(there)):
        fresh["config.yaml"] = sealed
    elif not there.startswith(_SEAL.format(_digest(text))):
        print(
            f"note: {shown(config)} was edited, so it is used as it is, and options that differ from it have no "
            "effect. Delete it to have it written anew."
        )
    init.write(folder, fresh)


def _is_untouched(there: str) -> bool:
    """Whether a config.yaml is as `export` wrote it: its first line holds the digest of the others."""
    first, _, rest = there.partition("\n")
    return f"{first}\n" == _SEAL.format(_digest(rest))


def _digest(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _run(folder: Path, files: Sequence[str], arch: str) -> None:
    """Let Snakemake make files of a project. What it says goes to logs/snakemake.log there.

    Raises:
        StageError: it failed by itself; failed jobs are told by `failures.PLACE`.
    """
    log = folder / "logs" / "snakemake.log"
    log.parent.mkdir(exist_ok=True)
    print(f"Snakemake's own log: {shown(log)}", flush=True)
    (folder / failures.PLACE).unlink(missing_ok=True)
    environment = {**os.environ, progress.VARIABLE: "1"}
    if ":" in arch and not arch.startswith("timm:"):  # a module in the folder where the user is
        paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "snakemake", "--keep-going", *files]
    with log.open("w") as told:
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=told)
    if done.returncode and not (folder / failures.PLACE).is_file():
        reason = exit_codes.reason_in(log.read_text(errors="replace"))
        raise StageError(f"Snakemake ended with exit code {done.returncode}: {reason} Its log: {shown(log)}")
