"""The part of the configuration that each stage reads: a stage runs again only when that part changes."""

from typing import Any

from pipeline.benchmark import stand_ins
from pipeline.config.project import Config, Verify
from pipeline.config.schema import Strict
from pipeline.config.stages import (
    AdoptSettings,
    BenchSettings,
    BundleSettings,
    CheckSettings,
    ExportSettings,
    NoSettings,
    QuantizeSettings,
    RaceSettings,
    RecalibrateSettings,
    ReferenceSettings,
    SplitSettings,
    TrainSettings,
)
from pipeline.config.targets import Target
from pipeline.errors import InputError, nearest
from pipeline.models import resolve


def settings_of(
    stage: str, config: Config, model: str | None = None, target: str | None = None, precision: str | None = None
) -> Strict:
    """The part of the configuration that one stage reads.

    Args:
        stage: its name.
        config: all of it.
        model, target: which of them is meant, for a stage of one.
        precision: which candidate, where the target is of `precision: auto` and the stage is not `race`.

    Raises:
        InputError: a model, target or candidate that the configuration does not name.
    """
    if model is not None and model not in config.models:
        raise InputError(f"the configuration has no model `{model}`{nearest(model, list(config.models))}")
    if target is not None and target not in config.targets:
        raise InputError(f"there is no target `{target}`{nearest(target, list(config.targets))}")
    is_held = any(one.precision == "int8" for one in config.targets.values())
    is_tried = any(one.precision == "int8" for several in config.candidates.values() for one in several)
    classes: dict[str, tuple[type[Strict], dict[str, Any]]] = {
        "split": (SplitSettings, {**dict(config.data), "used_for": config.data.used_for}),
        "verify": (Verify, dict(config.verify)),
        "quantize": (QuantizeSettings, {**dict(config.quantize), "may_lose": is_tried and not is_held}),
    }
    if model is not None:
        trained = {**dict(config.data), **dict(config.models[model])}
        classes |= {
            "train": (TrainSettings, trained),
            "adopt": (AdoptSettings, trained),
            "recalibrate": (RecalibrateSettings, trained),
        }
    if target is not None:
        meant = config.targets[target] if stage in ("race", "bundle") else _of_precision(config, target, precision)
        deployed = {
            **dict(meant),
            "target": target,
            "model": model,
            "forms": resolve.forms(config, meant, model) if model else (),
            "may_lose": target in config.candidates,
        }
        classes |= {
            "export": (ExportSettings, deployed),
            "check": (CheckSettings, deployed),
            "bench": (BenchSettings, deployed),
            "reference": (ReferenceSettings, deployed | _in_reference(config, meant, model)),
            "race": (RaceSettings, deployed),
            "bundle": (BundleSettings, {**deployed, "bundle": config.bundle}),
        }
    settings, values = classes.get(stage, (NoSettings, {}))
    return settings(**{name: values[name] for name in settings.model_fields})


def _in_reference(config: Config, target: Target, model: str | None) -> dict[str, Any]:
    """What differs from a target's settings where a stand-in measures it. The size is a number, so that equals meet."""
    size = target.image_size or (config.models[model].image_size if model else None)
    return {"precision": stand_ins.precision_of(target.precision), "image_size": size}


def _of_precision(config: Config, target: str, precision: str | None) -> Target:
    if precision is None and target not in config.candidates:
        return config.targets[target]
    found = {one.precision: one for one in config.exported(target)}
    if precision not in found:
        what = f"no candidate `{precision}`" if precision else "several candidates; say which with --precision"
        raise InputError(f"the target `{target}` has {what}{nearest(precision or '', list(found))}")
    return found[precision]
