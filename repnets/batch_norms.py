"""Find batch norms with abnormal running statistics, and estimate the statistics again.

Folding multiplies each output channel of a kernel by its batch norm's gain, weight / sqrt(variance + eps). An extreme
variance gives an extreme kernel: correct in float32, but out of range or imprecise in float16 and int8.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnets.errors import RepnetsError

# six standard deviations reach the largest float16; of a normal distribution, one value in 5e8 lies farther out
_HUGE = (torch.finfo(torch.float16).max / 6) ** 2

_REMEDY = "estimate the statistics anew from training images (`recalibrate_bn` in the pipeline's config)"


@dataclass(frozen=True)
class Finding:
    """A batch norm with abnormal running statistics.

    Attributes:
        layer: Qualified name of the batch norm; empty where it is the model itself.
        kind: `untouched`, `tiny` or `huge`.
        value: Its smallest running variance if `tiny`, its largest if `huge`, else 1.
        message: What is wrong, its effect, and what to do about it, as sentences that name the layer.
    """

    layer: str
    kind: str
    value: float
    message: str


def bn_health(model: nn.Module) -> list[Finding]:
    """The batch norms of a model with abnormal running statistics, in the model's order.

    - `untouched`: every mean is 0 and every variance 1, the initial values. The layer has seen no data in training
      mode, or its statistics were not in the checkpoint.
    - `tiny`: a variance below the layer's eps, and a gain above 1. Eps then decides the gain, up to
      weight / sqrt(eps), 316 times the weight for the usual 1e-5. Such a channel was constant in training, and any
      difference from that constant is amplified. A channel with a gain of at most 1 (its weight is close to zero too)
      is common and harmless, and no finding.
    - `huge`: a variance above 1.2e8: six standard deviations exceed the range of float16 (65504), so the branched
      network overflows in float16. Normal variances are smaller by orders of magnitude.

    Args:
        model: In any mode, on any device; it is only read. Batch norms without running statistics are skipped: `fuse`
            reports them.
    """
    findings = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            findings += _look_at(name, module)
    return findings


def recalibrated(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of a model, in eval mode, whose batch norms have the statistics of these images only.

    Means and variances are averaged over the batches with equal weights, while the batch norms normalise with the
    statistics of each batch ("precise BN", arXiv 2105.07576, section 3). Weights do not change; dropout is off.

    Args:
        model: With batch norms, in any mode; it is not changed.
        batches: Of (n, C, H, W), on the model's device: training images as they come, shuffled, not augmented,
            in batches at least as large as in training, and of about equal size.

    Raises:
        RepnetsError: The model has no batch norm, no batch was given, or a batch norm came out with
            statistics that are not finite.
    """
    model = copy.deepcopy(model).eval()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    }
    if not norms:
        raise RepnetsError(
            "The model has no batch norm with running statistics, so there is nothing to estimate anew; it may be "
            "fused already. Leave it as it is (in the pipeline's config, without `recalibrate_bn`)."
        )
    momenta = {name: module.momentum for name, module in norms.items()}
    for module in norms.values():
        module.reset_running_stats()
        module.momentum = None  # a plain average
        module.train()
    seen = 0
    with torch.no_grad():
        for images in batches:
            model(images)
            seen += len(images)
    if not seen:
        raise RepnetsError("No image was given to estimate the batch norms' statistics from. Give training images.")
    for name, module in norms.items():
        module.momentum = momenta[name]
        if not (module.running_mean.isfinite().all() and module.running_var.isfinite().all()):
            raise RepnetsError(
                f"The statistics of the batch norm {name!r} came out NaN or infinite on these images: the weights "
                "before it blow up. Take an earlier checkpoint, or train again with a lower learning rate."
            )
    return model.eval()


def _look_at(name: str, module: _BatchNorm) -> list[Finding]:
    variance = module.running_var.double()
    if bool((module.running_mean == 0).all()) and bool((variance == 1).all()):
        text = (
            "has the statistics that it was made with, mean 0 and variance 1: it never saw data in training mode, "
            f"or they were left out of the checkpoint. Load a whole checkpoint, or {_REMEDY}."
        )
        return [Finding(name, "untouched", 1.0, _sentence(name, text))]
    weight = torch.ones_like(variance) if module.weight is None else module.weight.detach().double().abs()
    gain = weight / (variance + module.eps).sqrt()
    findings = []
    tiny = (variance < module.eps) & (gain > 1)
    if tiny.any():
        text = (
            f"has variances below its eps of {module.eps:g} in {_of(tiny)} channels, down to "
            f"{float(variance[tiny].min()):.1e}: they were constant in training, and whatever differs is multiplied "
            f"by up to {float(gain[tiny].max()):.3g}. If the network is fed otherwise than it was trained, {_REMEDY}. "
            "If not, these channels are dead, and make kernels of a wide range: watch the accuracy in float16 and "
            "int8; training with a lower learning rate keeps channels alive."
        )
        findings.append(Finding(name, "tiny", float(variance[tiny].min()), _sentence(name, text)))
    huge = variance > _HUGE
    if huge.any():
        text = (
            f"has variances up to {float(variance[huge].max()):.1e} in {_of(huge)} channels, whose values leave the "
            "range of float16: training diverged there, or its images were fed as 0..255 and not normalised. Compare "
            f"mean and std with those of the training, then {_REMEDY}."
        )
        findings.append(Finding(name, "huge", float(variance[huge].max()), _sentence(name, text)))
    return findings


def _sentence(name: str, text: str) -> str:
    return f"The batch norm {name!r} {text}" if name else f"The batch norm {text}"


def _of(channels: Tensor) -> str:
    return f"{int(channels.sum())} of {len(channels)}"
