"""What fusing gains on the runtimes that people use on a CPU, and how much of the machine each of them reaches.

    python benchmarks/peers.py                                           toy, RepVGG-A0 and MobileOne-S0 at 224 x 224
    python benchmarks/peers.py --networks mobileone_s1 --size 160 --threads 2
    python benchmarks/peers.py --json peers.json > peers.md              takes some ten minutes on two cores

Each network is built in both forms, with random weights and random batch norm statistics: branched, as it is trained,
and fused by repnets.fuse. Both are run, batch 1, float32, by

eager          PyTorch, operation by operation, from a torch.export program
torch.compile  the same program, compiled with the defaults
ONNX Runtime   the ONNX file
OpenVINO       the same ONNX file; needs: pip install "repnets[peers]"
ExecuTorch     the .pte for XNNPACK

Before the clock starts, all of them must give the same logits; an error says which does not. Then all forms on all
runtimes are timed in turn, each in a process of its own, launched afresh several times. A ratio is the median of the
rounds' own ratios, with its 95 % interval. In the same turn a large product of two float32 matrices shows what the
machine can do on as many threads; a network's share of it is the floating-point operations of its convolutions and
matrix products in a second, over those of that product.

A runtime that is not here is unavailable, and what to do is said below the table.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runtimes import product
from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec, Preprocessing, Unavailable
from pipeline.backends.worker import client
from pipeline.benchmark import conditions, inputs, interleaved, statistics, timing
from pipeline.errors import GateError
from pipeline.verification import compare

NETWORKS = ("toy", "repvgg_a0", "mobileone_s0")
FORMS = ("branched", "fused")
CLASSES = 1000
CHECKED_IMAGES = 4
PRODUCT = "product"
PRODUCT_SIDE = 512  # larger ones leave the cache, and are slower than a network's own products


def unavailable(module: str) -> Unavailable | None:
    """Why a backend, or a module of `benchmarks.runtimes`, cannot run files here; None where it can."""
    return import_module(backends.module_name(module)).unavailable()


@dataclass(frozen=True)
class Runtime:
    """A runtime under test: its name, the module that `worker` runs, and the suffix of the file that it reads."""

    name: str
    module: str
    suffix: str

    def unavailable(self) -> Unavailable | None:
        return unavailable(self.module)


RUNTIMES = (
    Runtime("eager", "pytorch", ".pt2"),
    Runtime("torch.compile", "benchmarks.runtimes.compiled", ".pt2"),
    Runtime("ONNX Runtime", "onnx", ".onnx"),
    Runtime("OpenVINO", "benchmarks.runtimes.openvino", ".onnx"),
    Runtime("ExecuTorch", "executorch", ".pte"),
)
BASELINE = RUNTIMES[0].name
PACKAGES = ("torch", "onnxruntime", "openvino", "executorch")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each network, print a table of each, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of each runtime; default: %(default)s")
    parser.add_argument("--min-runs", type=int, default=50, help="of each form on each runtime; default: %(default)s")
    parser.add_argument("--max-seconds", type=float, default=60, help="of a network's timed runs; default: %(default)s")
    parser.add_argument("--launches", type=int, nargs=2, default=(3, 5), metavar=("LEAST", "MOST"), help="default: 3 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args(argv)
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} to write {options.json.name} into; make it first")
    fewest, most = options.launches
    if not 1 <= fewest <= most:
        parser.error(f"--launches: give the least, from 1 on, and then the most, not {fewest} {most}")
    until = interleaved.Until(
        min_runs=options.min_runs, max_seconds=options.max_seconds, min_launches=fewest, max_launches=most
    )
    result = run(options.networks, options.size, options.threads, until)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))
    return 0


def run(networks: Sequence[str], size: int, threads: int, until: interleaved.Until) -> dict[str, Any]:
    """All that is found of the networks, as JSON types."""
    from tqdm import tqdm

    missing = {runtime.name: found for runtime in RUNTIMES if (found := runtime.unavailable())}
    here = [runtime for runtime in RUNTIMES if runtime.name not in missing]
    found = {}
    steps = len(networks) * len(FORMS) * (2 * len(here)) + len(networks)
    before = conditions.snapshot()
    with tqdm(total=steps, unit="step", dynamic_ncols=True) as bar, tempfile.TemporaryDirectory() as name:
        for network in networks:
            found[network] = measured(network, here, size, threads, until, Path(name), bar)
    return {
        "input_shape": [1, 3, size, size],
        "until": asdict(until),
        "unavailable": {runtime: asdict(why) for runtime, why in missing.items()},
        "networks": found,
        "conditions": conditions.describe(threads, PACKAGES, before, conditions.snapshot()),
    }


def measured(
    network: str,
    runtimes: Sequence[Runtime],
    size: int,
    threads: int,
    until: interleaved.Until,
    folder: Path,
    bar: Any,
) -> dict[str, Any]:
    """Write the files of a network, hold their logits against each other, and time them."""
    shape = (1, 3, size, size)
    jobs, operations = {}, {}
    for form, module in both_forms(network, size).items():
        operations[form] = count(module, shape)
        written: dict[str, Path] = {}
        for runtime in runtimes:
            bar.set_description(f"{network}: {form} for {runtime.name}")
            if runtime.suffix not in written:
                written[runtime.suffix] = write(module, shape, folder / f"{network}-{form}{runtime.suffix}")
            jobs[form, runtime.name] = client.Job(runtime.module, written[runtime.suffix])
            bar.update()
    images = inputs.random_image((CHECKED_IMAGES, *shape[1:]))
    logits = {}
    for (form, runtime), job in jobs.items():
        bar.set_description(f"{network}: logits of {form} by {runtime}")
        logits[form, runtime] = client.predict(job.backend, job.file, images, threads, session="own")
        bar.update()
    errors = require_equal(network, logits)
    bar.set_description(f"{network}: timing")
    reference = client.Job(product.__name__, folder / "product.onnx")
    by_name = {f"{form} {runtime}": job for (form, runtime), job in jobs.items()}
    product_operations = product.write(reference.file, PRODUCT_SIDE)
    timed = timing.time_in_turn({PRODUCT: reference, **by_name}, images[:1], threads, until=until)
    bar.update()
    samples = timed.timing.samples_ms
    peak = statistics.summary(samples[PRODUCT])
    return {
        "operations": operations,
        "peak_gflops": product_operations / peak["p50"] / 1e6,
        "product_ms": peak,
        "stopped_by": timed.timing.stopped_by,
        "runtimes": {
            runtime.name: {
                "forms": {
                    form: {
                        "latency_ms": statistics.summary(samples[f"{form} {runtime.name}"]),
                        "share_of_peak": scaled(
                            statistics.speedup(samples[PRODUCT], samples[f"{form} {runtime.name}"]),
                            operations[form] / product_operations,
                        ),
                        "relative_error": errors[form, runtime.name],
                        **timed.started[f"{form} {runtime.name}"],
                    }
                    for form in FORMS
                },
                "fused_over_branched": ratio(samples, f"branched {runtime.name}", f"fused {runtime.name}"),
                "over_eager": {form: ratio(samples, f"{form} {BASELINE}", f"{form} {runtime.name}") for form in FORMS},
            }
            for runtime in runtimes
        },
    }


def both_forms(network: str, size: int) -> dict[str, Any]:
    """The network, trained-looking, and what `repnets.fuse` makes of it."""
    import torch

    import repnets

    torch.manual_seed(0)
    model = repnets.create_model(network, CLASSES).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return {"branched": model, "fused": repnets.fuse(model, torch.zeros(1, 3, size, size)).module}


def count(module: Any, shape: tuple[int, ...]) -> int:
    """Floating-point operations of one inference: twice the multiply-accumulates of convolutions and products."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(shape))
    return counter.get_total_flops()


def write(module: Any, shape: tuple[int, ...], file: Path) -> Path:
    """Write a network as the kind of file that the suffix says."""
    import torch

    program = torch.export.export(module, (torch.zeros(shape),))
    if file.suffix == ".pt2":
        torch.export.save(program, file)
    else:
        spec = ExportSpec("fp32", shape, Preprocessing(shape[-1], (0.0,) * 3, (1.0,) * 3, ()))
        backends.load(backends.by_suffix(file)).export(program, [file], spec)
    return file


def require_equal(network: str, logits: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], float]:
    """Largest error of each form on each runtime, of the largest logit of the branched network in eager PyTorch.

    Raises:
        GateError: one is more than float32 explains.
    """
    tolerance, errors = compare.TOLERANCE["fp32"], {}
    for (form, runtime), got in logits.items():
        found = compare.compare(got, logits["branched", BASELINE])
        if not found.relative_error <= tolerance:
            raise GateError(
                f"{network}, {form}, by {runtime}: {found} the branched network in eager PyTorch, off by "
                f"{found.relative_error:.1e} of the largest logit; tolerance is {tolerance:.0e}. They do not "
                "compute the same, so their latencies cannot be compared."
            )
        errors[form, runtime] = found.relative_error
    return errors


def ratio(samples: Mapping[str, Any], before: str, after: str) -> dict[str, Any] | None:
    """How many times as fast `after` is; None for a form against itself."""
    return None if before == after else statistics.speedup(samples[before], samples[after])


def scaled(figure: Mapping[str, Any], factor: float) -> dict[str, float | None]:
    """A ratio and its interval, times a factor."""
    return {key: figure[key] and figure[key] * factor for key in ("median", "low", "high")}


# What is printed


def report(result: Mapping[str, Any]) -> str:
    """Conditions and a markdown table for each network; what was not here, and why."""
    about = result["conditions"]
    used = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    busy = f"; {about['warning']}" if about["warning"] else ""
    size = result["input_shape"][-1]
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    parts = [f"{about['cpu']}, {about['cores']} cores, {threads}, batch 1, {size} x {size}, float32; {used}{busy}."]
    for network, found in result["networks"].items():
        parts += [heading(network, found), table([HEAD, *rows(found, result["unavailable"])])]
    parts += [f"{name}: {why['reason']} {why['remedy']}" for name, why in result["unavailable"].items()]
    return "\n\n".join(parts)


HEAD = (
    *("", "branched ms", "fused ms", "fused over branched"),
    *("over eager, branched", "over eager, fused", "of the peak, branched", "of the peak, fused"),
)


def heading(network: str, found: Mapping[str, Any]) -> str:
    latency = found["product_ms"]
    branched, fused = (f"{found['operations'][form] / 1e9:.2f}" for form in FORMS)
    return (
        f"**{network}**: {branched} GFLOP branched, {fused} fused; a product of float32 matrices of {PRODUCT_SIDE} x "
        f"{PRODUCT_SIDE} reaches {found['peak_gflops']:.1f} GFLOP/s. {latency['n']} runs of each in "
        f"{latency['launches']} launches."
    )


def rows(found: Mapping[str, Any], unavailable: Mapping[str, Any]) -> list[tuple[str, ...]]:
    lines = []
    for runtime in RUNTIMES:
        if runtime.name in unavailable:
            lines.append((runtime.name, "unavailable", *("-",) * (len(HEAD) - 2)))
            continue
        one = found["runtimes"][runtime.name]
        forms = [one["forms"][form] for form in FORMS]
        lines.append(
            (
                runtime.name,
                *(f"{form['latency_ms']['p50']:.2f}" for form in forms),
                times(one["fused_over_branched"]),
                *(times(one["over_eager"][form]) for form in FORMS),
                *(percent(form["share_of_peak"]) for form in forms),
            )
        )
    return lines


def times(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "1"
    ends = "" if figure["low"] is None else f" ({figure['low']:.2f}-{figure['high']:.2f})"
    return f"{figure['median']:.2f}x{ends}"


def percent(figure: Mapping[str, Any]) -> str:
    ends = "" if figure["low"] is None else f" ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"
    return f"{100 * figure['median']:.0f} %{ends}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """A markdown table, its first column aligned left and the others right."""
    ruled = [lines[0], ("---", *["---:"] * (len(lines[0]) - 1)), *lines[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)


if __name__ == "__main__":
    sys.exit(main())
