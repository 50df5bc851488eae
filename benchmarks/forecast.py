"""Whether the forecast of int8 (repnets.forecast) comes true: against each layer tried out, and against all at once.

    python benchmarks/forecast.py --split artifacts/split.json artifacts/*/checkpoint.safetensors

told       the forecast from 128 training images.
tried      256 other training images, each layer's weight and input rounded to int8 by itself, the others in float32,
           with the ranges of the 128. `order` is Spearman's rank correlation with that, over the layers.
instead    the rank correlation of what one might go by instead: the noise of the rounded weights, that of the rounded
           inputs, and the same forecast from random images (normal, and smooth).
int8       all layers at once, on the validation images: error of the logits and accuracy. Plain rounding, each range as
           large as the largest value: what the stage `quantize` begins with, not what it ends with.

Errors are mean squares over the variance of the logits.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import fx
from torch.nn.functional import interpolate

import repnets
from pipeline.data import splits
from pipeline.models import checkpoints
from repnets.quantization.layer_errors import layers_of, rounded, rounded_weight
from repnets.quantization.simulation import error

TOLD, TRIED = 128, 256


def tried(module, layers, largest, batches):
    """The logits with these layers in int8."""
    by_node = {layer.node: (layer, rounded_weight(layer.weight.detach())) for layer in layers}
    found = []
    for images in batches:
        interpreter = fx.Interpreter(module)
        interpreter.args_iter = iter([images])
        for node in module.graph.nodes:
            if node in by_node:
                layer, weight = by_node[node]
                value = layer.call(rounded(interpreter.env[node.args[0]], largest[layer.name]), weight)
            else:
                value = interpreter.run_node(node)
            interpreter.env[node] = value
        found.append(value)
    return torch.cat(found)


def order(told, want):
    """Spearman's rank correlation."""
    ranks = torch.stack([torch.tensor(one).argsort().argsort().double() for one in (told, want)])
    return float(torch.corrcoef(ranks)[0, 1])


def random_images(size, smooth):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(TOLD, 3, 8 if smooth else size, 8 if smooth else size, generator=generator)
    return list((interpolate(images, (size, size), mode="bilinear") if smooth else images).split(32))


def measure(path, images):
    model, header = checkpoints.load_model(path)
    preprocessing = header.preprocessing
    size = preprocessing.image_size
    result = repnets.fuse(model, torch.zeros(2, 3, size, size))
    train = [batch for batch, _ in images.sample("train", TOLD + TRIED).batches("train", preprocessing, 32)]
    known, others = train[: TOLD // 32], train[TOLD // 32 :]

    clock = time.perf_counter()
    told = repnets.forecast(model, result, known)
    seconds = time.perf_counter() - clock
    layers = layers_of(result.module)
    largest = {row.name: torch.tensor(row.input.largest) for row in told.layers}
    with torch.no_grad():
        want = torch.cat([result.module(batch) for batch in others])
        clock = time.perf_counter()
        truth = [
            error(tried(result.module, [one for one in layers if one.name == row.name], largest, others), want)
            for row in told.layers
        ]
        trying = time.perf_counter() - clock
        batches = list(images.batches("val", preprocessing, 64))
        labels = torch.cat([labels for _, labels in batches])
        val = [batch for batch, _ in batches]
        in_float = torch.cat([result.module(batch) for batch in val])
        in_int8 = tried(result.module, layers, largest, val)
    guesses = {
        "told": [row.logit_error.both for row in told.layers],
        "weights": [-row.weight.snr_db for row in told.layers],
        "inputs": [-row.input.snr_db for row in told.layers],
    }
    for name, smooth in (("random", False), ("smooth", True)):
        rows = repnets.forecast(model, result, random_images(size, smooth)).layers
        guesses[name] = [row.logit_error.both for row in rows]
    ratios = [a / b for a, b in zip(guesses["told"], truth, strict=True)]
    print(f"\n{path}: {len(truth)} layers, forecast in {seconds:.1f} s, tried out in {trying:.1f} s")
    print("  order: " + ", ".join(f"{name} {order(one, truth):.2f}" for name, one in guesses.items()))
    print(f"  told / tried: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    worst = max(range(len(truth)), key=truth.__getitem__)
    print(f"  worst: told {max(guesses['told']):.1e}; tried {truth[worst]:.1e}, {told.layers[worst].name}")
    right = [float((logits.argmax(1) == labels).double().mean()) * 100 for logits in (in_float, in_int8)]
    print(f"  int8: error told {told.logit_error:.1e}, is {error(in_int8, in_float):.1e}; ", end="")
    print(f"{right[0]:.2f} % right in float, {right[1]:.2f} % in int8")
    for risk in told.risks:
        print(f"  {risk.cause}: {risk.message}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--split", type=Path, default=Path("artifacts/split.json"))
    options = parser.parse_args()
    images = splits.open_split(options.split)
    for path in options.checkpoints:
        measure(path, images)


if __name__ == "__main__":
    main()
