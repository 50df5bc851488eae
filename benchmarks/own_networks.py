"""What becomes of a user's own network: twenty of them, through every stage and all targets.

    python benchmarks/own_networks.py                                 every network below; half an hour on one core
    python benchmarks/own_networks.py --networks lenet UNet ecbsr
    python benchmarks/own_networks.py --networks lenet --targets executorch-int8
    python benchmarks/own_networks.py --output own.json > own.md
    python benchmarks/own_networks.py --read first.json second.json   the table of earlier runs

Each network is written in tests/fixtures/own_networks.py as people write theirs: LeNet, DenseNet, U-Net, ECBSR, group
norms, hand-written activations. It is trained on the digits of scikit-learn, 32 x 32, for a few epochs, and then put
through the stages themselves, with the settings of config.yaml and of targets/: train, reparameterize, verify,
quantize, and for each target export and check; nothing is timed. They run in this process, one after the other.

A cell is `passed`, or the number of a note below the table: the stage that refused, and its own words. A network that
ends in any other error is a fault of this project: the trace is printed, and the exit code is 1.

Results come from the store only if $REPNETS_STORE is set, so that `seconds` are those of the work.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fuse import table
from pipeline import backends
from pipeline.benchmark import conditions
from pipeline.config import yaml_file
from pipeline.config.project import Config
from pipeline.errors import GateError, InputError, StageError, first_line, nearest
from pipeline.models import resolve
from pipeline.stages import adopt, check, export, jobs, quantize, reparameterize, split, train, verify
from pipeline.stages.settings import settings_of
from repnets.errors import RepnetsError

PROJECT = Path(__file__).resolve().parents[1]
MODULE = "tests.fixtures.own_networks"
PACKAGES = ("torch", "torchao", "executorch", "coremltools", "onnx", "onnxruntime")
PASSED = "passed"
GRAY = ("one_channel",)
"""Networks that take gray images."""
FORMS = ("fused", "quantized")


def main(argv: Sequence[str] | None = None) -> int:
    """Build each network for each target, print the table, write a JSON file."""
    from tests.fixtures.own_networks import NETWORKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=list(NETWORKS), help="default: all")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="folders of targets/; default: all")
    parser.add_argument("--epochs", type=int, default=5, help="of training; default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="print the table of such files instead")
    options = parser.parse_args(argv)
    if options.read:
        results = [json.loads(file.read_text()) for file in options.read]
        print(
            text({**results[0], "networks": {name: one for each in results for name, one in each["networks"].items()}})
        )
        return 0
    for name in options.networks:
        if name not in NETWORKS:
            parser.error(f"there is no network `{name}`{nearest(name, list(NETWORKS))}")
    config = configured(options.networks, options.epochs)
    for target in options.targets or ():
        if target not in config.targets:
            parser.error(f"there is no target `{target}`{nearest(target, list(config.targets))}")
    targets = options.targets or list(config.targets)
    before = conditions.snapshot()
    networks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="repnets-") as folder:
        for variable, value in {**jobs.ENVIRONMENT, "REPNETS_STORE": f"{folder}/store"}.items():
            os.environ.setdefault(variable, value)
        place = Path(folder, "split.json")
        with contextlib.redirect_stdout(sys.stderr):  # the table alone goes to stdout
            split.run(settings_of("split", config), output=place)
        for number, name in enumerate(options.networks, start=1):
            networks[name] = {"title": NETWORKS[name], **built(name, config, targets, Path(folder))}
            print(f"[{number}/{len(options.networks)}] {_progress(name, networks[name])}", file=sys.stderr, flush=True)
            about = conditions.describe(threads(), PACKAGES, before, conditions.snapshot())
            made = {"weights": f"{options.epochs} epochs of training", "scores": ["top-1 %", "int8 %"]}
            result = {"conditions": about, **made, "networks": networks}
            if options.output:  # also of a run that is stopped
                options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(text(result))
    return 1 if any(why and why["fault"] for one in networks.values() for why in one["targets"].values()) else 0


def configured(names: Sequence[str], epochs: int) -> Config:
    """The project's own configuration, of these networks."""
    values = yaml_file.read(PROJECT / "config.yaml")
    values["models"] = {
        name: {"arch": f"{MODULE}:{name}", "color_order": "gray" if name in GRAY else "RGB"} for name in names
    }
    values["training"] = {**values["training"], "epochs": epochs}
    return resolve.load(values, backends.rules(), PROJECT)


def threads() -> int:
    """That torch uses."""
    import torch

    return torch.get_num_threads()


def built(name: str, config: Config, targets: Sequence[str], folder: Path) -> dict[str, Any]:
    """Put a network through all stages, from its training or from its checkpoint.

    Args:
        name: of a model of `config`.
        targets: the files to export, by their targets.
        folder: with split.json; it gets what Snakemake writes into a project.

    Returns:
        ``targets``: None for each that passed, or ``stage``, ``reason``, and whether it is a ``fault`` of this project;
        ``seconds``; and where they were found ``convolutions`` and ``batch_norms`` before and after, and ``accuracy``
        by form.
    """
    start, place, own = time.perf_counter(), {"split": folder / "split.json"}, folder / "artifacts" / name
    checkpoint, fused = {"checkpoint": own / "checkpoint.safetensors"}, {"fused": own / "fused.pt2"}
    proof, quantized = {"verify": own / "verify.json"}, {"quantized": own / "quantized.pt2"}

    def stage(module: ModuleType, target: str | None = None, **paths: Any) -> dict[str, Any] | None:
        stage_name = module.__name__.rpartition(".")[2]
        settings = settings_of(stage_name, config, name, target)
        return _attempt(stage_name, folder, lambda: module.run(settings, **paths))

    weights = config.models[name].checkpoint
    why = (
        stage(adopt, source=Path(weights), **place, **checkpoint)
        if weights
        else stage(train, **place, **checkpoint, metrics=own / "metrics.jsonl")
    )
    why = (
        why
        or stage(reparameterize, **checkpoint, **place, **fused, report=own / "fuse.json")
        or stage(verify, **checkpoint, **place, **fused, output=proof["verify"])
    )
    in_int8 = [target for target in targets if config.targets[target].precision == "int8"]
    no_int8 = why
    if in_int8 and not why:
        no_int8 = stage(quantize, **fused, **proof, **place, **quantized, report=own / "quantize.json")

    def shipped(target: str) -> dict[str, Any] | None:
        there = folder / "targets" / target / name
        forms = resolve.forms(config, config.targets[target], name)
        files = [there / file for file in backends.file_names(config.targets[target].backend, forms)]
        sources = {**fused, **proof, **(quantized if target in in_int8 else {})}
        manifest = {"manifest": there / "manifest.json"}
        return stage(export, target, **checkpoint, **sources, **manifest) or stage(
            check, target, **sources, **manifest, files=files, **place, output=there / "check.json"
        )

    outcomes = {target: (no_int8 if target in in_int8 else why) or shipped(target) for target in targets}
    return {**_figures(own), "targets": outcomes, "seconds": time.perf_counter() - start}


def _attempt(stage: str, folder: Path, run: Callable[[], None]) -> dict[str, Any] | None:
    """Run a stage, whose prints are dropped: None, or why it did not pass."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run()
    except (InputError, GateError, StageError, RepnetsError) as error:
        return {"stage": stage, "fault": False, "reason": str(error).replace(f"{folder}/", "")}
    except Exception as error:  # what a stage raises beyond its own errors
        traceback.print_exc()
        return {"stage": stage, "fault": True, "reason": f"{type(error).__name__}: {first_line(error)}"}
    return None


def _figures(own: Path) -> dict[str, Any]:
    """What the reports of the stages say, as far as these came."""
    found: dict[str, Any] = {}
    if (own / "fuse.json").exists():
        fuse = json.loads((own / "fuse.json").read_text())
        for what in ("convolutions", "batch_norms"):
            found[what] = [fuse[when][what] for when in ("before", "after")]
    for file in ("verify.json", "quantize.json"):
        if (own / file).exists():
            found["accuracy"] = found.get("accuracy", {}) | json.loads((own / file).read_text())["accuracy"]
    return found


# What is printed


def _progress(name: str, found: Mapping[str, Any]) -> str:
    whole = [target for target, why in found["targets"].items() if why is None]
    return f"{name}: {len(whole)} of {len(found['targets'])} targets passed, {found['seconds']:.0f} s"


def text(result: Mapping[str, Any]) -> str:
    """All networks as a markdown table, and below it why any of them did not pass."""
    about, networks = result["conditions"], result["networks"]
    targets = list(next(iter(networks.values()))["targets"])
    notes: list[str] = []

    def cell(why: Mapping[str, Any] | None) -> str:
        if why is None:
            return PASSED
        said = f"{'**a fault** in ' if why['fault'] else ''}{why['stage']}: {why['reason']}"
        if said not in notes:
            notes.append(said)
        return f"{'fault' if why['fault'] else 'refused'} [{notes.index(said) + 1}]"

    rows = [
        [
            one["title"],
            *(" to ".join(map(str, one[what])) if what in one else "-" for what in ("convolutions", "batch_norms")),
            *(f"{100 * one['accuracy'][form]:.2f}" if form in one.get("accuracy", {}) else "-" for form in FORMS),
            *(cell(one["targets"][target]) for target in targets),
            f"{one['seconds']:.0f}",
        ]
        for one in networks.values()
    ]
    versions = ", ".join(f"{package} {about['versions'][package]}" for package in PACKAGES)
    outcomes = [why for one in networks.values() for why in one["targets"].values()]
    many = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    return "\n\n".join(
        (
            f"{about['cpu']}, {about['cores']} cores, {many}, {result['weights']}; {versions}.",
            table(("network", "convolutions", "batch norms", *result["scores"], *targets, "s"), rows),
            *(f"[{number}] {note}" for number, note in enumerate(notes, start=1)),
            f"{outcomes.count(None)} of {len(outcomes)} passed, "
            f"{sum(bool(why) and not why['fault'] for why in outcomes)} were refused, "
            f"{sum(bool(why) and why['fault'] for why in outcomes)} are faults.",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
