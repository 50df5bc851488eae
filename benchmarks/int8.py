"""What int8 costs in accuracy and gains in speed: this project's, a naive one, and those of the runtimes' own makers.

    python benchmarks/int8.py                                         everything; hours where nothing is trained yet
    python benchmarks/int8.py --networks toy repvgg_a0 --data digits
    python benchmarks/int8.py --networks efficientnet_lite0 --accuracy-only
    python benchmarks/int8.py --quick                                 toy, hardly trained: does all of it run?
    python benchmarks/int8.py --json int8.json > int8.md

The pipeline's stages train, fuse and quantize each network; a second run finds them in the store. EfficientNet-Lite0
comes trained. On Fashion-MNIST its last layer alone is fitted here; on pictures, crops of photographs without labels,
its "accuracy" is how often it says what its float form says. Of each network there are

float32        the fused network, before anything is int8
naive          symmetric int8 with the largest values as ranges, one scale a weight or one a channel; nothing repaired
ours           quantized.pt2 of the stage `quantize`, and the files made from it: .pte by ExecuTorch, .onnx by ONNX
               Runtime and OpenVINO, .mlpackage by the evaluator of ML programs (by Core ML on a Mac)
ONNX Runtime's its static quantization of the float32 .onnx: symmetric with a scale a channel, and with its defaults
NNCF           OpenVINO's quantizer with its defaults, on the same .onnx; needs: pip install "repnets[peers]"

All calibrate with the same training images. The test images are read once, after the last file was written; no stage
ever saw them. Then what runs on a CPU is timed in turn, batch 1, each in a process of its own, launched afresh several
times. A ratio is over ExecuTorch's float32, the median of the rounds' own ratios, with its 95 % interval.

What is not here is unavailable, and what to do is said below the table.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers, pretrained, rivals, subjects
from benchmarks.runtimes import openvino
from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec, Unavailable
from pipeline.backends.worker import client
from pipeline.benchmark import conditions, interleaved, statistics, timing
from pipeline.errors import InputError
from pipeline.models import networks, program_file, programs
from pipeline.quantization import pt2e

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

NETWORKS = ("toy", "repvgg_a0", "qarepvgg_a0", "mobileone_s0", subjects.PRETRAINED)
PACKAGES = ("torch", "torchao", "executorch", "coremltools", "onnxruntime", "openvino", "nncf")
FLOAT, OURS = "float32", "ours"
AIM_POINTS, AIM_SPEED = 0.5, 2.0
_CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Row:
    """A file, and what runs it.

    Attributes:
        kind: whose int8 it is, or `FLOAT`.
        runtime: in words.
        backend: the module that `worker` runs.
        file: its name.
        timed: whether its latency says something here: not that of PyTorch, nor of the evaluator.
    """

    kind: str
    runtime: str
    backend: str
    file: str
    timed: bool = True

    @property
    def name(self) -> str:
        return f"{self.kind} by {self.runtime}"


ROWS = (
    Row(FLOAT, "PyTorch", "pytorch", "fused.pt2", timed=False),
    Row(FLOAT, "ExecuTorch", "executorch", "fused.pte"),
    Row(FLOAT, "ONNX Runtime", "onnx", "fused.onnx"),
    Row(FLOAT, "OpenVINO", openvino.__name__, "fused.onnx"),
    Row("naive, a scale a weight", "PyTorch", "pytorch", "naive-weight.pt2", timed=False),
    Row("naive, a scale a channel", "PyTorch", "pytorch", "naive-channel.pt2", timed=False),
    Row(OURS, "PyTorch", "pytorch", "quantized.pt2", timed=False),
    Row(OURS, "ExecuTorch", "executorch", "quantized.pte"),
    Row(OURS, "ONNX Runtime", "onnx", "quantized.onnx"),
    Row(OURS, "OpenVINO", openvino.__name__, "quantized.onnx"),
    Row(OURS, "Core ML's evaluator", "coreml", "quantized.mlpackage", timed=False),
    Row("ONNX Runtime's, a scale a channel", "ONNX Runtime", "onnx", "onnxruntime-channel.onnx"),
    Row("ONNX Runtime's, defaults", "ONNX Runtime", "onnx", "onnxruntime-defaults.onnx"),
    Row("NNCF", "OpenVINO", openvino.__name__, "nncf.xml"),
)
REFERENCE, BASELINE = ROWS[0], ROWS[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize and measure each network, print a table of each, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--data", nargs="+", default=subjects.DATA, choices=subjects.DATA, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=12000, help="to train and validate with; default: %(default)s")
    parser.add_argument("--epochs", type=int, help=f"of training; default: {subjects.EPOCHS}")
    parser.add_argument("--test-images", type=int, default=10000, metavar="N", help="at most; default: %(default)s")
    parser.add_argument(
        "--max-drop", type=float, default=AIM_POINTS / 100, metavar="SHARE", help="quantize.max_metric_drop"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each runtime; default: %(default)s")
    parser.add_argument("--min-runs", type=int, default=50, help="of each file; default: %(default)s")
    parser.add_argument("--max-seconds", type=float, default=60, help="of a network's timed runs; default: %(default)s")
    parser.add_argument("--accuracy-only", action="store_true", help="time nothing")
    parser.add_argument("--quick", action="store_true", help="toy on digits, one epoch, few images and runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args(argv)
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} to write {options.json.name} into; make it first")
    if options.quick:
        options.networks, options.data, options.epochs, options.test_images = ("toy",), ("digits",), 1, 64
        options.images, options.min_runs, options.max_seconds, options.max_drop = 300, 10, 1, 1.0
    try:
        for name in options.networks:
            networks.check(name) if name != subjects.PRETRAINED else None
    except InputError as error:
        parser.error(f"--networks: {error}")
    if not wanted(options):
        parser.error(f"{', '.join(options.networks)} is not seen on {', '.join(options.data)}; see --help")
    result = run(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All that is found, as JSON types."""
    from tqdm import tqdm

    missing = missing_here()
    rows = [row for row in ROWS if row.name not in missing]
    pairs = wanted(options)
    if absent := pretrained.unavailable():
        pairs = [one for one in pairs if one[0] != subjects.PRETRAINED]
        missing[subjects.PRETRAINED] = absent
    found = {}
    before = conditions.snapshot()
    with tqdm(total=len(pairs) * (2 * len(rows) + 2), unit="step", dynamic_ncols=True) as bar:
        for name, on in pairs:
            with tempfile.TemporaryDirectory(prefix="repnets-") as folder:
                bar.set_description(f"{name} on {on}: training, fusing and quantizing")
                subject = made(name, on, Path(folder), options)
                bar.update()
                found[subject.title] = measured(subject, rows, options, bar)
    return {
        "until": None if options.accuracy_only else asdict(_until(options)),
        "unavailable": {what: asdict(why) for what, why in missing.items()},
        "networks": found,
        "conditions": conditions.describe(options.threads, PACKAGES, before, conditions.snapshot()),
    }


def wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Networks, and the data sets that each is seen on."""
    return [(name, on) for name in options.networks for on in options.data if subjects.goes_on(name, on)]


def missing_here() -> dict[str, Unavailable]:
    """What of `ROWS` cannot be had on this machine, by name, and why."""
    found = {}
    for row in ROWS:
        why = rivals.nncf_unavailable() if row.kind == "NNCF" else peers.unavailable(row.backend)
        if row.timed and why:  # what is not timed has a runtime that runs anywhere
            found[row.name] = why
    return found


def made(name: str, on: str, folder: Path, options: argparse.Namespace) -> subjects.Subject:
    """A network with its float and its int8 program."""
    limits = {"tests": options.test_images, "max_drop": options.max_drop}
    if on == subjects.PICTURES:
        return subjects.pretrained(folder, **limits)
    if name == subjects.PRETRAINED:
        return subjects.probed(on, folder, images=options.images, **limits)
    return subjects.trained(name, on, folder, images=options.images, epochs=options.epochs, **limits)


def measured(subject: subjects.Subject, rows: Sequence[Row], options: argparse.Namespace, bar: Any) -> dict[str, Any]:
    """Write all files of a network, then put the test images through them, then time them."""
    import numpy as np

    calibration = subject.calibration()
    for row in rows:
        bar.set_description(f"{subject.title}: {row.file}")
        if not (subject.folder / row.file).exists():
            write(subject, row, calibration)
        bar.update()
    images, labels = map(np.concatenate, zip(*subject.test_images(), strict=True))
    jobs = {row: client.Job(row.backend, subject.folder / row.file) for row in rows}
    classes = {}
    for row, job in jobs.items():
        bar.set_description(f"{subject.title}: test images by {row.name}")
        session = "own" if row.timed else "check"
        classes[row] = client.predict(job.backend, job.file, images, options.threads, session=session).argmax(1)
        bar.update()
    samples, warning, until = {}, None, _until(options)
    if not options.accuracy_only:
        bar.set_description(f"{subject.title}: timing")
        timed = {row.name: job for row, job in jobs.items() if row.timed}
        before = conditions.snapshot()
        samples = timing.time_in_turn(timed, images[:1], options.threads, until=until).timing.samples_ms
        warning = conditions.describe(options.threads, PACKAGES, before, conditions.snapshot())["warning"]
    bar.update()
    right = {row: float((found == labels).mean()) for row, found in classes.items()}
    return {
        "test_images": len(labels),
        "image_size": subject.preprocessing.image_size,
        "calibration_images": len(calibration),
        "refusal": subject.refusal,
        "repair": subject.repair(),
        "warning": warning,
        "rows": {
            row.name: {
                "accuracy": right[row],
                "points": 100 * (right[row] - right[REFERENCE]),
                "same_class": float((classes[row] == classes[REFERENCE]).mean()),
                "size_bytes": size(subject.folder / row.file),
                "latency_ms": statistics.summary(samples[row.name]) if row.name in samples else None,
                "speedup": statistics.speedup(samples[BASELINE.name], samples[row.name])
                if row.name in samples and row != BASELINE
                else None,
            }
            for row in rows
        },
    }


def _until(options: argparse.Namespace) -> interleaved.Until:
    return interleaved.Until(min_runs=options.min_runs, max_seconds=options.max_seconds)


# Files


def write(subject: subjects.Subject, row: Row, calibration: "np.ndarray") -> None:
    """Write the file of a row: of fused.pt2, of quantized.pt2, or of fused.onnx, which comes before the rivals'."""
    import torch

    folder, file = subject.folder, subject.folder / row.file
    if row.kind.startswith("ONNX Runtime's"):
        rivals.onnx_runtime(folder / "fused.onnx", file, calibration, per_channel="channel" in file.name)
    elif row.kind == "NNCF":
        rivals.nncf(folder / "fused.onnx", file, calibration)
    elif row.kind.startswith("naive"):
        program, _ = program_file.read(folder / "fused.pt2")
        torch.export.save(naive(program, calibration, per_tensor="weight" in file.name), file)
    else:
        program, _ = program_file.read(file.with_suffix(".pt2"))
        name = backends.by_suffix(file)
        rules = backends.load(name).rules
        options = dict([rules.at_least["int8"]]) if rules and "int8" in rules.at_least else {}
        spec = ExportSpec("int8" if row.kind == OURS else "fp32", subject.shape, subject.preprocessing, options)
        backends.load(name).export(programs.static(programs.as_module(program), subject.shape), [file], spec)


def naive(program: "ExportedProgram", calibration: "np.ndarray", *, per_tensor: bool) -> "ExportedProgram":
    """An int8 program whose ranges are the largest values that were seen.

    Args:
        program: the fused one.
        calibration: float32 (n, 3, H, W).
        per_tensor: one scale for a whole weight; else one for each output channel.
    """
    import torch

    from repnets.quantization import ranges

    prepared = pt2e.prepare(pt2e.network(program))
    simulation = pt2e.simulation(prepared)
    batches = torch.from_numpy(calibration).split(_CALIBRATION_BATCH)
    ranges.set_activations(ranges.observe(simulation, batches), "max")
    ranges.set_weights(simulation, "max", per_tensor=per_tensor)
    return pt2e.convert(prepared, simulation, (2, *calibration.shape[1:]))


def size(file: Path) -> int:
    """Bytes of a file, of all in a folder, or of an .xml and the weights beside it."""
    files = [one for one in file.rglob("*") if one.is_file()] if file.is_dir() else [file]
    return sum(one.stat().st_size for one in [*files, *(file.parent.glob(f"{file.stem}.bin"))])


# What is printed


HEAD = ("", "by", "accuracy", "points", "same class", "ms", "over float32 by ExecuTorch", "MB")


def report(result: Mapping[str, Any]) -> str:
    """Conditions and a markdown table for each network, held against the aims; what was not here, and why."""
    about = result["conditions"]
    used = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    parts = [f"{about['cpu']}, {about['cores']} cores, {threads}, batch 1; {used}."]
    for title, found in result["networks"].items():
        parts += [heading(title, found), peers.table([HEAD, *lines(found, result["unavailable"])]), verdict(found)]
    parts += [f"{name}: {why['reason']} {why['remedy']}" for name, why in result["unavailable"].items()]
    return "\n\n".join(parts)


def heading(title: str, found: Mapping[str, Any]) -> str:
    side = found["image_size"]
    latency = found["rows"][BASELINE.name]["latency_ms"]
    runs = f"; {latency['n']} runs of each in {latency['launches']} launches" if latency else ""
    busy = f"; {found['warning']}" if found["warning"] else ""
    return (
        f"**{title}**: {found['test_images']} test images of {side} x {side}, one of them is "
        f"{100 / found['test_images']:.2f} points; {found['calibration_images']} to calibrate with{runs}{busy}."
    )


def lines(found: Mapping[str, Any], unavailable: Mapping[str, Any]) -> list[tuple[str, ...]]:
    made = []
    for row in ROWS:
        one = found["rows"].get(row.name)
        if one is None:
            made.append((row.kind, row.runtime, "unavailable", *("-",) * (len(HEAD) - 3)))
            continue
        faster = "1" if row == BASELINE else peers.times(one["speedup"])
        made.append(
            (
                *(row.kind, row.runtime, f"{one['accuracy']:.2%}", f"{one['points']:+.2f}", f"{one['same_class']:.2%}"),
                *((f"{one['latency_ms']['p50']:.3f}", faster) if one["latency_ms"] else ("-", "-")),
                f"{one['size_bytes'] / 1e6:.2f}",
            )
        )
    return made


def verdict(found: Mapping[str, Any]) -> str:
    """What the aims ask, and whether it holds."""
    rows = {row: found["rows"][row.name] for row in ROWS if row.name in found["rows"]}
    ours = {row: one for row, one in rows.items() if row.kind == OURS}
    others = {row: one for row, one in rows.items() if row.kind not in (OURS, FLOAT) and "naive" not in row.kind}
    worst = min(ours, key=lambda row: ours[row]["points"])
    said = [f"the stage quantize would not ship it: {found['refusal']}"] if found["refusal"] else []
    said += [
        f"within {AIM_POINTS} points of float: {_yes(ours[worst]['points'] >= -AIM_POINTS)} "
        f"({ours[worst]['points']:+.2f} by {worst.runtime})"
    ]
    if others:
        best = max(others, key=lambda row: others[row]["accuracy"])
        margin = ours[worst]["points"] - others[best]["points"]
        said.append(f"not behind the others: {_yes(margin >= 0)} ({margin:+.2f} to {best.kind})")
    speed = next(one["speedup"] for row, one in ours.items() if row.runtime == "ExecuTorch")
    if speed:
        said.append(f"{AIM_SPEED:g} times as fast on ExecuTorch: {_yes(speed['median'] >= AIM_SPEED)}")
    return f"Ours: {'; '.join(said)}. Repair: {found['repair']}."


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


if __name__ == "__main__":
    sys.exit(main())
