"""`repnets models`: the networks by name."""

from pipeline.report.text import aligned
from repnets.checkpoints import layouts
from repnets.checkpoints.state_dict_errors import COUNTER
from repnets.networks import MODELS

HELP = """\
List the networks that `arch:` in config.yaml and `repnets export` can name, with the smallest image that each takes and
the layouts of its checkpoints. `arch:` also takes timm:NAME, and module.path:function for your own.

examples:
  repnets models
  repnets models --parameters
"""

_STATISTICS = ("running_mean", "running_var", COUNTER)


def models(parameters: bool = False) -> None:
    """List the networks that `arch:` in config.yaml can name.

    Args:
        parameters: count them, in training form and folded, which imports torch.
    """
    rows = [("network", "task", "smallest image", "layouts")]
    for name, spec in MODELS.items():
        size = spec.min_image_size
        rows.append((name, spec.task, f"{size} x {size}", ", ".join(layouts.namings(name)) or "repnets"))
    if parameters:
        counts = [("parameters", "folded"), *(_parameters(name) for name in MODELS)]
        rows = [(*row[:3], *count, row[3]) for row, count in zip(rows, counts, strict=True)]
    print(aligned(rows))


def _parameters(arch: str) -> tuple[str, str]:
    forms = ("training", "deploy") if layouts.namings(arch) else ("training",)
    counts = [
        sum(shape.numel() for name, shape in layouts.shapes(arch, form).items() if not name.endswith(_STATISTICS))
        for form in forms
    ]
    return f"{counts[0]:,}", f"{counts[1]:,}" if len(counts) > 1 else "-"
