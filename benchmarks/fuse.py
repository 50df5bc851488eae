"""Compare `repnets.fuse` with timm's own fuse methods, on the networks that have one.

    python benchmarks/fuse.py                                           one or two small networks a family
    python benchmarks/fuse.py --networks repvgg_a0 fastvit_t8 --rounds 40 --threads 2
    python benchmarks/fuse.py --all --output fuse.json                  every network that fits in memory

original   the network as timm builds it, with random weights and random batch norm statistics.
timm       timm.utils.reparameterize_model: the fuse method that its authors wrote for each block.
ours       repnets.fuse, which knows no block.

All three are counted by the same counters: convolutions, batch norms and operations on the graph that
`repnets.capture` gives of each, multiply-accumulates (matrix products included) by torch's own FlopCounterMode.
An operation is a node of that graph that computes something: a view of the same memory does not count.

The three are timed in turn (A B C A B C), in blocks, in one process; a ratio is the median of the rounds' own
ratios, with its 95 % interval. Each fuser also has a process to itself, whose memory is therefore its own: the
peak is what fusing took beyond the network it was given. Before the clock starts, both have fused one layer,
so that no import is timed. Errors are those of float32 outputs against the original in float64, as multiples of
the original's own float32 error.

It needs timm: pip install 'repnets[timm]'.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.benchmark import conditions, interleaved
from pipeline.benchmark.statistics import speedup, summary

# small members of every family of timm in which a block has a fuse method; and a network without one
FAMILIES = {
    "plain": ("resnet18",),
    "byobnet": ("repvgg_a0", "mobileone_s0", "mobileone_s1"),
    "fastvit": ("fastvit_t8", "fastvit_mci0"),
    "repghost": ("repghostnet_050",),
    "ghostnet": ("ghostnetv3_050",),
    "repvit": ("repvit_m0_9",),
    "levit": ("levit_128s", "levit_conv_128s"),
    "efficientvit_msra": ("efficientvit_m0",),
    "efficientvim": ("efficientvim_m1",),
    "iformer": ("iformer_t",),
    "lcnetv2": ("lcnetv2_small",),
    "shvit": ("shvit_s1",),
    "tiny_vit": ("tiny_vit_5m_224",),
    "nextvit": ("nextvit_small",),
}
FORMS = ("original", "timm", "ours")
FUSE_METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # as timm.utils.reparameterize_model looks for them
PHASES = ("capture", "analysis", "emission", "check")  # of our fuse
PACKAGES = ("torch", "timm")
WARMUP_SECONDS = 1.0
MEMORY_FACTOR = 12  # times its weights: three forms, one copy in float64, and what fusing takes


def main() -> int:
    """Measure each network, print two tables, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--networks", nargs="+", metavar="NAME", help="of timm; default: some of each family")
    chosen.add_argument("--all", action="store_true", help="every network of timm that has a fuse method")
    parser.add_argument(
        "--size", type=int, default=224, metavar="PIXELS", help="where it is free; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=20, help="of the latencies, in turn; default: %(default)s")
    parser.add_argument("--fusings", type=int, default=3, help="that are timed, of each; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="that torch may use; default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: two at least, since one ratio has no interval")

    names = options.networks or [name for family in FAMILIES.values() for name in family]
    if options.all:
        names, left_out = alone(fusable_networks)
        for name, reason in left_out.items():
            print(f"left out: {name}: {reason}", file=sys.stderr)
    before = conditions.snapshot()
    networks = {}
    for number, name in enumerate(names, start=1):
        start = time.perf_counter()
        networks[name] = measured(name, options)
        print(
            f"[{number}/{len(names)}] {progress(name, networks[name])}, {time.perf_counter() - start:.0f} s", flush=True
        )
    about = conditions.describe(options.threads, PACKAGES, before, conditions.snapshot())
    result = {"conditions": about, "rounds": options.rounds, "fusings": options.fusings, "networks": networks}
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))
    return 1 if any(one["failed"] for one in networks.values()) else 0


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """What `function` returns in a fresh process, whose memory and threads are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All that is known of one network. `failed` says what could not be measured, and why."""
    found: dict[str, Any] = {"failed": {}}
    parts: dict[str, tuple[object, ...]] = {
        "timm": (fusing, name, options.size, options.threads, "timm", options.fusings),
        "ours": (fusing, name, options.size, options.threads, "ours", options.fusings),
        "forms": (compare, name, options.size, options.threads, options.rounds),
    }
    for part, (function, *arguments) in parts.items():
        try:
            found[part] = alone(function, *arguments)
        except BrokenProcessPool:
            found["failed"][part] = "the process ended early, perhaps for lack of memory"
        except Exception as error:  # whatever a network's own code, the exporter or a fuser raises
            found["failed"][part] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return found


# In a process of its own


def fusable_networks() -> tuple[list[str], dict[str, str]]:
    """Names of timm's networks in which a module has a fuse method, and those too large for this machine."""
    import timm
    import torch
    from torch import nn

    def has_fuse(thing: object) -> bool:
        return any(hasattr(thing, method) for method in FUSE_METHODS)

    free = available_memory()
    names, left_out = ["resnet18"], {}
    for home in timm.list_modules():
        kinds = [kind for kind in vars(sys.modules[f"timm.models.{home}"]).values() if isinstance(kind, type)]
        if not any(issubclass(kind, nn.Module) and has_fuse(kind) for kind in kinds):
            continue
        for name in timm.list_models(module=home):
            with torch.device("meta"):
                model = timm.create_model(name)
            need = MEMORY_FACTOR * weight_bytes(model)
            if not any(has_fuse(module) for module in model.modules()):
                continue
            if need > free:
                left_out[name] = f"it needs about {need / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"
            else:
                names.append(name)
    return names, left_out


def build(name: str, size: int, threads: int) -> tuple[Any, Any]:
    """A network of timm in eval mode, trained-looking; and an image of `size`, or of the only size it takes."""
    import timm
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(name).eval().requires_grad_(False)
    shuffle_constants(model)
    settings = model.default_cfg
    side = settings["input_size"][-1] if settings.get("fixed_input_size") else size
    return model, torch.randn(1, 3, side, side)


def shuffle_constants(model: Any) -> None:
    """Move batch norms, and all parameters that begin as one value, away from where errors are hidden."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in model.modules():
        norm = isinstance(module, _BatchNorm)
        if norm and module.running_mean is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
        for name, tensor in module.named_parameters(recurse=False):
            if norm and name == "weight":
                tensor.uniform_(0.5, 1.5)
            elif tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
                around = 0.0 if name == "bias" or not tensor.any() else 1.0
                tensor.uniform_(around - 0.5, around + 0.5)


def fused_by(fuser: str, model: Any, example: Any) -> Any:
    """The network as `timm` or `ours` fuses it, and our report or None."""
    if fuser == "timm":
        from timm.utils import reparameterize_model

        return reparameterize_model(model).eval(), None
    import repnets

    result = repnets.fuse(model, example)
    return result.module, result.report


def fusing(name: str, size: int, threads: int, fuser: str, fusings: int) -> dict[str, Any]:
    """Seconds that fusing takes, and the memory that it takes at its peak beyond the network itself."""
    import gc

    import torch

    model, example = build(name, size, threads)
    fused_by(fuser, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval(), example)
    gc.collect()
    resident = restart_peak_memory()
    found: dict[str, Any] = {"seconds": [], "phases": [], "weight_bytes": weight_bytes(model)}
    for number in range(fusings):
        start = time.perf_counter()
        fused, account = fused_by(fuser, model, example)
        found["seconds"].append(time.perf_counter() - start)
        if number == 0:
            found["peak_bytes"] = peak_memory() - resident
        if account:
            found["phases"].append(account.seconds)
        del fused
    return found


def compare(name: str, size: int, threads: int, rounds: int) -> dict[str, Any]:
    """Counts, errors and latencies of the original, timm's and ours."""
    import copy

    import torch

    model, example = build(name, size, threads)
    exact = copy.deepcopy(model).double()  # before it runs: some networks keep what they computed
    forms = {"original": model} | {fuser: fused_by(fuser, model, example)[0] for fuser in FORMS[1:]}
    found = {"input_shape": list(example.shape)}
    found["counts"] = {form: counts(module, example) for form, module in forms.items()}
    with torch.inference_mode():
        wanted = exact(example.double())
        del exact
        errors = {form: (module(example) - wanted).abs().max().item() for form, module in forms.items()}
        found["error"] = {form: error / wanted.abs().max().item() for form, error in errors.items()}
        runs = {form: lambda module=module: module(example) for form, module in forms.items()}
        timing = interleaved.time_in_turn(
            interleaved.in_this_process(runs),
            interleaved.Until(
                WARMUP_SECONDS, rounds * interleaved.BLOCK, max_seconds=0, min_launches=1, max_launches=1
            ),
        )
    samples = timing.samples_ms
    found["latency_ms"] = {form: summary(samples[form]) for form in forms}
    pairs = (("original", "timm"), ("original", "ours"), ("timm", "ours"))
    found["speedup"] = {f"{a} to {b}": speedup(samples[a], samples[b]) for a, b in pairs}
    return found


def counts(module: Any, example: Any) -> dict[str, int]:
    """Size of a network at `example`: convolutions, batch norms, operations, parameters, MACs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import repnets

    graph = repnets.capture(module, example).graph
    targets = [node.target for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    names = [target._schema.name.removeprefix("aten::") for target in targets if not target.is_view]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(example)
    return {
        "convolutions": sum(name.startswith(("conv1d", "conv2d", "conv3d", "convolution")) for name in names),
        "batch_norms": sum("batch_norm" in name for name in names),
        "operations": sum(name not in MOVES and not name.startswith(("sym_", "_assert")) for name in names),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "macs": counter.get_total_flops() // 2,
    }


MOVES = {"clone", "reshape", "contiguous", "_to_copy", "dropout", "flatten", "lift_fresh_copy", "_unsafe_view"}


def weight_bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


# Memory, as Linux accounts it


def restart_peak_memory() -> int:
    """Forget the process's peak of resident memory; returns what is resident now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("/proc/self/status", "VmRSS")


def peak_memory() -> int:
    return status_bytes("/proc/self/status", "VmHWM")


def available_memory() -> int:
    return status_bytes("/proc/meminfo", "MemAvailable")


def status_bytes(path: str, key: str) -> int:
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


# What is printed


def progress(name: str, found: Mapping[str, Any]) -> str:
    """One line about a network."""
    if found["failed"]:
        return f"{name}: " + "; ".join(f"{part} failed: {reason}" for part, reason in found["failed"].items())
    forms = found["forms"]
    left = "/".join(str(forms["counts"][form]["convolutions"]) for form in FORMS)
    taken = "/".join(f"{forms['latency_ms'][form]['p50']:.1f}" for form in FORMS)
    return f"{name} at {forms['input_shape'][-1]}: {left} convolutions, {taken} ms"


def report(result: Mapping[str, Any]) -> str:
    """All networks as markdown tables: sizes, latencies, what fusing took; and where timm's own fuse is ahead."""
    whole = {name: one for name, one in result["networks"].items() if not one["failed"]}
    about = result["conditions"]
    versions = ", ".join(f"{package} {about['versions'][package]}" for package in PACKAGES)
    busy = f"; {about['warning']}" if about["warning"] else ""
    parts = [
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {versions}; load average "
        f"{about['load_average_before']} before and {about['load_average_after']} after{busy}. Batch 1, float32. "
        f"n = {result['rounds']} rounds of {interleaved.BLOCK} runs, {result['fusings']} fusings.",
        table(("original / timm / ours", *SIZES), [sizes_row(name, one["forms"]) for name, one in whole.items()]),
        table(LATENCY_HEAD, [latency_row(name, one["forms"]) for name, one in whole.items()]),
        table(FUSING_HEAD, [fusing_row(name, one) for name, one in whole.items()]),
    ]
    ahead = [line for name, one in whole.items() for line in timm_ahead(name, one["forms"])]
    parts.append("\n".join(["timm's own fuse is ahead:", *ahead]) if ahead else "timm's own fuse is nowhere ahead.")
    failed = {name: one["failed"] for name, one in result["networks"].items() if one["failed"]}
    parts += [f"{name}, {part}: {reason}" for name, reasons in failed.items() for part, reason in reasons.items()]
    return "\n\n".join(parts)


SIZES: dict[str, Callable[[Mapping[str, int]], str]] = {
    "convolutions": lambda one: str(one["convolutions"]),
    "batch norms": lambda one: str(one["batch_norms"]),
    "operations": lambda one: str(one["operations"]),
    "GMAC": lambda one: f"{one['macs'] / 1e9:.3f}",
    "M parameters": lambda one: f"{one['parameters'] / 1e6:.2f}",
}
LATENCY_HEAD = ("median ms", *FORMS, "original to timm", "original to ours", "timm to ours")
FUSING_HEAD = (
    *("fusing", "timm s", "ours s", *PHASES, "peak memory over weights: timm", "ours"),
    *("error over float32's own: timm", "ours"),
)


def sizes_row(name: str, forms: Mapping[str, Any]) -> list[str]:
    columns = ([shown(forms["counts"][form]) for form in FORMS] for shown in SIZES.values())
    return [f"{name} at {forms['input_shape'][-1]}", *(" / ".join(column) for column in columns)]


def latency_row(name: str, forms: Mapping[str, Any]) -> list[str]:
    ratios = (f"{one['median']:.2f}x ({one['low']:.2f}-{one['high']:.2f})" for one in forms["speedup"].values())
    return [name, *(f"{forms['latency_ms'][form]['p50']:.2f}" for form in FORMS), *ratios]


def fusing_row(name: str, one: Mapping[str, Any]) -> list[str]:
    timm, ours = one["timm"], one["ours"]
    return [
        name,
        *(f"{statistics.median(part['seconds']):.2f}" for part in (timm, ours)),
        *(f"{statistics.median(phases[name] for phases in ours['phases']):.2f}" for name in PHASES),
        *(f"{part['peak_bytes'] / part['weight_bytes']:.1f}" for part in (timm, ours)),
        *(f"{one['forms']['error'][fuser] / one['forms']['error']['original']:.1f}" for fuser in FORMS[1:]),
    ]


def timm_ahead(name: str, forms: Mapping[str, Any]) -> list[str]:
    """Where ours has more of something than timm's, or is surely slower."""
    timm, ours = forms["counts"]["timm"], forms["counts"]["ours"]
    lines = [f"{name}: {ours[key]:,} {key} after {timm[key]:,}" for key in timm if ours[key] > timm[key]]
    ratio = forms["speedup"]["timm to ours"]
    return lines + ([f"{name}: {ratio['median']:.3f}x the speed"] if ratio["high"] < 1 else [])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its first column aligned left and the others right."""
    lines = [[*head], ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
