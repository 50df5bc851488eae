"""A configuration whose networks are checked to exist, and the form of each model's checkpoint."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.artifacts import own_code
from pipeline.artifacts.manifest import ImageSize, height_and_width
from pipeline.config import project
from pipeline.config.backend_rules import BackendRules
from pipeline.config.project import Config, Model
from pipeline.config.schema import where
from pipeline.config.targets import Target
from pipeline.errors import InputError
from pipeline.models import external_checkpoints, networks
from repnets.networks import MODELS


def load(values: Mapping[str, Any], rules: Mapping[str, BackendRules], root: Path = Path()) -> Config:
    """A validated configuration, as `pipeline.config.project.load` gives it, whose networks can be built.

    Raises:
        InputError: as there; an `arch` that is no network; an image size that the network is too large for.
    """
    read = project.load(values, rules, root)
    source = root / "config.yaml"
    for key, given, example in (
        ("name", read.data.name, "mydata:Screws"),
        ("task", read.data.task, "mytasks:Leaves"),
    ):
        if ":" in (given or ""):
            try:
                own_code.require(given, f"data.{key}", example)
            except InputError as error:
                raise InputError(f"{where(source, ('data', key))}: {error}") from None
    for name, model in read.models.items():
        path = ("models", name)
        named = (*path, "arch") if "arch" in (values["models"][name] or {}) else path
        try:
            networks.check(model.arch)
        except InputError as error:
            raise InputError(f"{where(source, named)}: {error}") from None
        task, used_for = networks.task_of(model.arch), read.data.used_for
        if task is not None and used_for not in (None, task) and ":" not in used_for:
            raise InputError(
                f"{where(source, named)}: `{model.arch}` is a network for {task}, and data.task is {used_for}. Take "
                f"one for {used_for}, such as {', '.join(_networks_for(used_for))}, or set data.task."
            )
        if used_for is None and task not in (None, "classification"):
            raise InputError(
                f"{where(source, named)}: `{model.arch}` is a network for {task}, and nothing tells what "
                f"{read.data.name} are for. Set `data: {{task: {task}}}`, and data.classes if it tells classes apart."
            )
        if used_for is None and task == "classification":
            raise InputError(
                f"{where(source, named)}: `{model.arch}` is a classifier, but data.classes is not set, and without "
                "labels nothing tells how many classes it has. Give their number, as `data: {classes: 1000}`, a list "
                "of their names, or a JSON file of them."
            )
        smallest = networks.min_image_size(model.arch)
        if smallest is not None and min(height_and_width(model.image_size)) < smallest:
            raise InputError(
                f"{where(source, path)}: `{model.arch}` needs images of at least {smallest} x {smallest} pixels, since "
                f"it halves them to one, and not {_shown(model.image_size)}. Set `image_size: {smallest}` under "
                f"models.{name} or data."
            )
        step = networks.size_step(model.arch)
        if any(side % step for side in height_and_width(model.image_size)):
            raise InputError(
                f"{where(source, path)}: `{model.arch}` takes multiples of {step} pixels, and image_size is "
                f"{_shown(model.image_size)}. Set `image_size: {_nearest(model.image_size, step)}` under models.{name} "
                "or data."
            )
    return read


def _nearest(size: ImageSize, step: int) -> ImageSize:
    sides = [max(step, step * round(side / step)) for side in height_and_width(size)]
    return sides[0] if isinstance(size, int) else (sides[0], sides[1])


def _networks_for(task: str) -> list[str]:
    return [spec.name for spec in MODELS.values() if spec.task == task][:3] or ["one of your own"]


def _shown(size: ImageSize) -> str:
    return " x ".join(map(str, height_and_width(size)))


def form(model: Model) -> str:
    """`deploy` if the user's checkpoint is of a folded network, else `training`."""
    return _form_of(model.checkpoint, model.arch) if model.checkpoint else "training"


def forms(config: Config, target: Target, model: str) -> tuple[str, ...]:
    """The forms of a model that a target exports: the one that ships, then the baseline if there is one.

    A checkpoint of a folded network has no branched form.
    """
    came_folded = form(config.models[model]) == "deploy"
    return tuple(one for one in target.forms if not (came_folded and one == "branched"))


@cache
def _form_of(checkpoint: str, arch: str) -> str:
    return external_checkpoints.form_of(Path(checkpoint), arch)
