"""What training branches gain: a plain CNN against the same one expanded in each style, trained by the same recipe.

    python benchmarks/expand.py                                   digits at 32 x 32, five seeds
    python benchmarks/expand.py --data fashion_mnist --epochs 15 --seeds 10
    python benchmarks/expand.py --arch torchvision.models:resnet18 --styles dbb repvgg
    python benchmarks/expand.py --data cifar10 --root data        torchvision downloads it into data/

Every seed trains the plain network and each style in turn, with the same seed, data and schedule. Each is then fused,
and the accuracy is that of the fused network, whose layers are those of the plain one: same file, same latency. The
gain is the mean over the seeds of the difference in the same seed, in percent points, with the 95 % interval of a
paired t test. An interval that includes zero shows no gain.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fuse import table
from pipeline.config.project import Training
from pipeline.config.stages import SplitSettings
from pipeline.data import splits
from pipeline.models import accuracy, networks
from pipeline.models import training as training_loop
from pipeline.stages import split
from repnets.expansion import STYLES

PLAIN = "plain"


def small_cnn(num_classes: int):
    """Six 3x3 convolutions with batch norms, about 100,000 parameters: the plain network of the default run."""
    from torch import nn

    def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    channels = [(3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2)]
    layers = [module for one in channels for module in layer(*one)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def main() -> int:
    """Train, fuse and evaluate; print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="benchmarks.expand:small_cnn", help="as in config.yaml; default: %(default)s")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES), help="default: all")
    parser.add_argument("--data", default="digits", help="data set, as in config.yaml; default: %(default)s")
    parser.add_argument("--root", help="its folder, as in config.yaml")
    parser.add_argument("--image-size", type=int, default=32, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=Training().epochs, help="of each run; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each form; default: %(default)s")
    parser.add_argument("--threads", type=int, help="that torch may use; default: as torch chooses")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more: an interval over one run says nothing")

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REPNETS_STORE"] = os.environ.get("REPNETS_STORE", folder)
        place = Path(folder) / "split.json"
        split.run(SplitSettings(name=options.data, root=options.root, val_fraction=0.2, split_seed=0), output=place)
        images = splits.open_split(place)
        forms = [PLAIN, *options.styles]
        runs = {form: [] for form in forms}
        for seed in range(options.seeds):
            for form in forms:
                runs[form].append(_trained(form, seed, options, images))
                last = runs[form][-1]
                print(f"seed {seed}, {form}: {last['accuracy']:.2%}, {last['seconds']:.0f} s", file=sys.stderr)
    print(
        f"{options.arch}, {options.data} at {options.image_size} x {options.image_size}, "
        f"{images.size('train')} training and {images.size('val')} validation images, {options.epochs} epochs, "
        f"{options.seeds} seeds; torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads\n"
    )
    print(_text(runs))
    if options.output:
        options.output.write_text(json.dumps({"options": vars(options) | {"output": None}, "runs": runs}, indent=1))
    return 0


def _trained(form: str, seed: int, options: argparse.Namespace, images: splits.Split) -> dict[str, float]:
    """Train a form by a seed and fuse it: the fused network's accuracy, and what the two forms consist of."""
    import torch

    import repnets

    preprocessing = images.preprocessing(options.image_size, "bilinear")
    recipe = Training(epochs=options.epochs, seed=seed, device="cpu")
    torch.manual_seed(seed)
    arch = options.arch if form == PLAIN else f"{options.arch}+{form}"
    model = networks.build(arch, len(images.classes))
    parameters = sum(one.numel() for one in model.parameters())
    records = training_loop.fit(model, images, preprocessing, recipe).records
    fused = repnets.fuse(model.eval(), torch.zeros(1, 3, options.image_size, options.image_size))
    return {
        "accuracy": accuracy.scorer(fused.module, images, preprocessing)(fused.module),
        "seconds": sum(one["seconds"] for one in records),
        "parameters": parameters,
        "convolutions": fused.report.after.convolutions,
        "fused_parameters": fused.report.after.parameters,
    }


def _text(runs: dict[str, list[dict[str, float]]]) -> str:
    from scipy import stats

    head = ("network", "parameters in training", "fused", "convolutions", "training s", "top-1 %", "gain, points")
    rows = []
    for form, those in runs.items():
        first, count = those[0], len(those)
        gains = [100 * (one["accuracy"] - plain["accuracy"]) for one, plain in zip(those, runs[PLAIN], strict=True)]
        mean = sum(gains) / count
        spread = (sum((one - mean) ** 2 for one in gains) / (count - 1) / count) ** 0.5
        half = float(stats.t.ppf(0.975, count - 1)) * spread
        gain = "" if form == PLAIN else f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
        rows.append(
            (
                form,
                f"{first['parameters']:,}",
                f"{first['fused_parameters']:,}",
                str(first["convolutions"]),
                f"{sum(one['seconds'] for one in those) / count:.0f}",
                f"{100 * sum(one['accuracy'] for one in those) / count:.2f}",
                gain,
            )
        )
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
