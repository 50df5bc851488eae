"""What becomes of networks of other packages: segmenters, detectors, feature extractors, super-resolution.

    pip install timm segmentation-models-pytorch spandrel ultralytics libreyolo
    python benchmarks/foreign_networks.py                             every network below; an hour on one core
    python benchmarks/foreign_networks.py --networks yolov8n span --targets executorch coreml-int8
    python benchmarks/foreign_networks.py --output foreign.json > foreign.md

They are those of tests/fixtures/foreign_networks.py, each as its package builds it, with random weights and batch norms
that are not as new, and as `arch: module:factory` takes it. Twenty crops of photographs stand for a folder of pictures.
Each goes through the stages themselves, as in own_networks.py beside this file, which says how the table is read:
adopt, reparameterize, verify, quantize, and for each target export and check. R2 is told for the fused network and for
int8; in int8 any loss is allowed, so that the table shows it.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.own_networks import PACKAGES, PROJECT, built, text, threads
from pipeline import backends
from pipeline.benchmark import conditions
from pipeline.config import yaml_file
from pipeline.config.project import Config
from pipeline.errors import nearest
from pipeline.models import resolve
from pipeline.stages import jobs, split
from pipeline.stages.settings import settings_of

MODULE = "tests.fixtures.foreign_networks"


def main(argv: Sequence[str] | None = None) -> int:
    """Put each network through all stages, print the table, write a JSON file."""
    from tests.fixtures import unlabelled
    from tests.fixtures.foreign_networks import NETWORKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=list(NETWORKS), help="default: all")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="folders of targets/; default: all")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args(argv)
    for name in options.networks:
        if name not in NETWORKS:
            parser.error(f"there is no network `{name}`{nearest(name, list(NETWORKS))}")
        if importlib.util.find_spec(NETWORKS[name].package) is None:
            parser.error(f"{NETWORKS[name].package} is not installed; see the top of this file")
    before = conditions.snapshot()
    networks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="repnets-") as place:
        folder = Path(place)
        for variable, value in {**jobs.ENVIRONMENT, "REPNETS_STORE": f"{folder}/store"}.items():
            os.environ.setdefault(variable, value)
        (folder / "pictures").mkdir()
        config = configured(options.networks, unlabelled.pictures(folder / "pictures"), folder)
        targets = options.targets or list(config.targets)
        with contextlib.redirect_stdout(sys.stderr):  # the table alone goes to stdout
            split.run(settings_of("split", config), output=folder / "split.json")
        for number, name in enumerate(options.networks, start=1):
            save_weights(name, folder)
            networks[name] = {"title": NETWORKS[name].title, **built(name, config, targets, folder)}
            print(f"[{number}/{len(options.networks)}] {name}", file=sys.stderr, flush=True)
            about = conditions.describe(threads(), PACKAGES, before, conditions.snapshot())
            made = {"weights": "random weights", "scores": ["R2 %, fused", "R2 %, int8"]}
            result = {"conditions": about, **made, "networks": networks}
            if options.output:  # also of a run that is stopped
                options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(text(result))
    return 1 if any(why and why["fault"] for one in networks.values() for why in one["targets"].values()) else 0


def configured(names: Sequence[str], pictures: Path, folder: Path) -> Config:
    """The project's own configuration, of these networks and pictures."""
    from tests.fixtures.foreign_networks import NETWORKS

    values = yaml_file.read(PROJECT / "config.yaml")
    values["data"] = {"name": "pictures", "root": str(pictures), "val_fraction": 0.4}
    values["quantize"] = {"max_metric_drop": 1.0}
    values["models"] = {
        name: {
            "arch": f"{MODULE}:{name}",
            "checkpoint": str(folder / f"{name}.pth"),
            "image_size": list(NETWORKS[name].image_size),
        }
        for name in names
    }
    # what int8 loses is shown and not held
    in_int8 = [file.parent.name for file in PROJECT.glob("targets/*-int8/target.yaml")]
    values["targets"] = {name: {"check": {"max_metric_drop": 1.0}} for name in in_int8}
    return resolve.load(values, backends.rules(), PROJECT)


def save_weights(name: str, folder: Path) -> None:
    """Random ones, with batch norms that are not as new."""
    import torch

    from tests.fixtures import foreign_networks
    from tests.fixtures.any_networks import with_seen_batch_norms

    torch.manual_seed(0)
    torch.save(with_seen_batch_norms(getattr(foreign_networks, name)()).state_dict(), folder / f"{name}.pth")


if __name__ == "__main__":
    sys.exit(main())
