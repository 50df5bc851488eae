"""The proof that a fused program is the branched network: in float64, weight by weight, and in float32.

The stage `verify` holds a project's networks so, and `repnets fuse` any other.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.artifacts.verify_result import Float32, Float64, FormErrors, Weights
from pipeline.config.project import Verify
from pipeline.errors import GateError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from repnets.fusion.report import FuseReport
    from repnets.fusion.sizes import FreeSize

_WEIGHT_TOLERANCE = 1e-6


def random_inputs(
    shape: "Sequence[int]", reference: "nn.Module", free: "Mapping[str, FreeSize]"
) -> dict[str, "Tensor"]:
    """Random images at three sizes, of those that the network and its program take; at its own in any case.

    Of several inputs, random samples of the one size.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    number, channels, *own = shape
    number = 4 if "batch" in free else number
    if not own:
        return {"random samples": torch.randn(number, channels, generator=generator)}
    inputs = {}
    for size in (own, [side + 1 + side % 2 for side in own], [side + side // 2 for side in own]):
        batch = torch.randn(number, channels, *size, generator=generator)
        taken = all(axis in free and side in free[axis] for axis, side in zip(("height", "width"), size, strict=True))
        shown = " x ".join(map(str, size))
        if size == own or (taken and _runs(reference, batch.double())):
            inputs[f"random {shown}"] = batch
        else:
            print(f"verify: the network does not take {shown} pixels, so it is not compared there", flush=True)
    return inputs


def _runs(model: "nn.Module", batch: "Tensor") -> bool:
    try:
        model(batch)
    except Exception:  # a model of one size fails on another in whatever layer ties it down
        return False
    return True


def hold_float64(
    reference: "nn.Module", refolded: "nn.Module", report: "FuseReport", inputs: dict[str, "Tensor"], tolerance: float
) -> tuple[Float64, dict[str, "Tensor"]]:
    """Hold the fold itself: both networks in float64.

    Returns:
        What was found, and by the input's name what the branched network gives.
    """
    from repnets.relative_error import relative_error

    errors, exact = {}, {}
    for name, batch in inputs.items():
        exact[name], got = reference(batch.double()), refolded(batch.double())
        errors[name] = relative_error(got, exact[name])
        if not errors[name] <= tolerance:
            worst = max(report.regions, key=lambda region: region.error_float64, default=None)
            where = f"the worst layer by itself is {worst.name} ({worst.error_float64:.1e})" if worst else "no region"
            raise GateError(
                f"float64: branched and fused differ by {errors[name]:.2e} of the largest logit on {name} input, "
                f"tolerance {tolerance:.0e}; {where}. The fold is not exact for this network; report it with fuse.json."
            )
    return Float64(tolerance, errors), exact


def hold_weights(program: "ExportedProgram", refused: "nn.Module") -> Weights:
    """Hold each weight of a program: it is the float32 rounding of that of the fold in float64, `refused`."""
    want, got = refused.state_dict(), program.state_dict
    shapes = [{name: tensor.shape for name, tensor in one.items()} for one in (want, got)]
    if odd := sorted(dict(shapes[0].items() ^ shapes[1].items())):
        raise GateError(
            f"weights: fused.pt2 and the fold of its checkpoint differ in {', '.join(odd[:4])}. Rebuild it."
        )
    largest = 0.0
    for name, tensor in want.items():
        exact = tensor.double()
        errors = (got[name].double() - exact).abs() / exact.abs().max().clamp_min(1e-30)
        error = float(errors.max())
        if not error <= _WEIGHT_TOLERANCE:
            at = _index(errors)
            is_, must = float(got[name][at]), float(exact[at])
            layer = name.rpartition(".")[0]
            raise GateError(
                f"weights: {f'layer {layer}' if layer else 'a constant'} of fused.pt2 is not the fold of its "
                f"checkpoint: {name}{list(at)} is {is_:.8g} and must be {must:.8g}, off by {error:.1e} "
                f"of the layer's largest weight, tolerance {_WEIGHT_TOLERANCE:.0e}. Delete fused.pt2 and run again."
            )
        largest = max(largest, error)
    return Weights(_WEIGHT_TOLERANCE, len(want), largest)


def hold_float32(
    exact: dict[str, "Tensor"], model: "nn.Module", file: "nn.Module", inputs: dict[str, "Tensor"], settings: Verify
) -> Float32:
    """Hold the program in float32, by how far the branched network itself is from `exact`, what it gives in float64."""
    from repnets.outputs import rows
    from repnets.relative_error import relative_error

    found, rounding = {}, 0.0
    for name, batch in inputs.items():
        outputs = {"branched": model(batch), "fused": file(batch)}
        found[name] = FormErrors(**{form: relative_error(given, exact[name]) for form, given in outputs.items()})
        rounding = max([rounding, *(_largest(rows(given) - rows(exact[name])) for given in outputs.values())])
        allowed = max(settings.float32_slack * found[name].branched, settings.float32_tolerance)
        if not found[name].fused <= allowed:
            raise GateError(
                f"float32: on {name} input the fused program is {found[name].fused:.2e} from the float64 reference, "
                f"the branched network {found[name].branched:.2e}, allowed {allowed:.2e}. Its weights are right: the "
                f"network is badly conditioned in float32: look for huge BN gains, or raise verify.float32_tolerance."
            )
    return Float32(settings.float32_slack, settings.float32_tolerance, found, rounding)


def _largest(differences: "Tensor") -> float:
    return float(differences.abs().max())


def _index(tensor: "Tensor") -> tuple[int, ...]:
    import torch

    return tuple(int(i) for i in torch.unravel_index(tensor.argmax(), tensor.shape))
