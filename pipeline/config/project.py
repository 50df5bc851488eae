"""config.yaml as strict models; an unknown key is an error.

Nothing here imports torch: the Snakefile reads the configuration every time it is parsed.
"""

import os
from collections.abc import Collection, Mapping
from keyword import iskeyword
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, field_validator, model_validator

from pipeline.artifacts.manifest import ColorOrder, Resize, channels_of
from pipeline.config import targets
from pipeline.config.backend_rules import BackendRules
from pipeline.config.schema import Strict, is_name, merged, section, unknown_key, validate, where
from pipeline.config.targets import Side, Target
from pipeline.errors import InputError, nearest, quoted
from repnets.expansion import STYLES


def _path(given: str) -> str:
    """A path with `~` written out."""
    path = os.path.expanduser(given)
    if path.startswith("~"):
        raise ValueError(f"`{quoted(given.partition('/')[0])}` is nobody's home folder")
    if len(path) > 4000 or any(len(os.fsencode(name)) > 255 for name in path.split("/")):
        raise ValueError("a path has at most 4,000 characters, and each name in it at most 255 bytes")
    return path


_Path = Annotated[str, AfterValidator(_path)]
_Level = Annotated[float, Field(ge=0, le=255)]
_Spread = Annotated[float, Field(gt=0, le=255)]
_Count = Annotated[int, Field(ge=2, le=1_000_000, strict=True)]
_Axis = Annotated[int, Field(ge=1, le=65_536, strict=True)]
_Shape = Annotated[tuple[_Axis, ...], Field(min_length=1, max_length=5)]


def _inputs(given: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names that are parameters of a forward, and numbers that fit into memory."""
    for name in given:
        if not (name.isidentifier() and name.isascii()) or iskeyword(name) or name in ("self", "samples"):
            raise ValueError(f"`{quoted(name)}` is no name of a parameter that the network's forward could have")
    if sum(map(prod, given.values())) > _MOST_NUMBERS:
        raise ValueError(f"one sample would have more than {_MOST_NUMBERS:,} numbers")
    return given


_MOST_NUMBERS = 1 << 26
_Inputs = Annotated[dict[str, _Shape], Field(min_length=2, max_length=32), AfterValidator(_inputs)]
_ABOUT_INPUTS = (
    "of networks of several: the shape of one sample of each, without the batch, by the name of the parameter of "
    "the network's forward: {left: [3, 64, 64], right: [1, 32, 32]}"
)


_OF_CLASSES = ("classification", "embedding")
_ANY = ("classification", "segmentation", "detection", "restoration", "embedding")
_TASKS: Mapping[str, tuple[str, ...]] = {
    "digit_scenes": ("detection", "segmentation"),
    "photographs": ("restoration",),
    "imagefolder": (*_OF_CLASSES, "restoration"),
    "masks": ("segmentation",),
    "coco": ("detection",),
    "pairs": ("restoration",),
    "pictures": _ANY,
    "none": _ANY,
}
"""What a data set can be used for, the usual first; of those that are not here it is `_OF_CLASSES`."""


HELD = {
    "imagefolder": "one folder of images per class",
    "masks": "the folders images and masks",
    "coco": "the folder images and the file annotations.json",
    "pairs": "the folders low and high",
    "pictures": "the pictures",
}
"""What `data.root` holds, of data sets that are a folder of the user's."""


_NAMES = ("digits", "digit_scenes", "photographs", "fashion_mnist", "cifar10", "cifar100", *HELD, "none")


class Data(Strict):
    """The data set for training and validation, and how its images become the network's input."""

    name: str = Field("digits", description=f"{', '.join(_NAMES)}, or module.path:name of your own")
    task: str | None = Field(
        None,
        description="what networks are trained for and judged by: classification, segmentation, detection, "
        "restoration, embedding, or module.path:Task; default: what the data set is usually used for",
    )
    scale: int = Field(
        1, ge=1, le=8, description="of restoration: how many times as large as the input the picture is that it gives"
    )
    root: _Path | None = Field(None, description="folder of the images, or where torchvision downloads them to")
    image_size: Side | tuple[Side, Side] = Field(32, description="side of the square input, or height, width; pixels")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    color_order: ColorOrder = "RGB"
    resize: Resize = "shorter_side_then_crop"
    inputs: _Inputs | None = Field(None, description=_ABOUT_INPUTS)
    val_fraction: float = Field(0.2, gt=0, lt=1, description="held out where the data has no split of its own")
    split_seed: int = 0
    classes: _Count | str | tuple[str, ...] = Field(
        "sorted",
        description="order of an imagefolder's classes: sorted, natural, a list of names, or a JSON file of them; of "
        "pictures and none: how many classes the network has, a list of names, or a JSON file of them; left out, it "
        "is no classifier",
    )

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in _NAMES and ":" not in name:
            raise ValueError(f"there is no `{quoted(name)}`{nearest(quoted(name), _NAMES)}")
        return name

    @property
    def has_labels(self) -> bool:
        """Whether it is known what a network should give for each image."""
        if self.name == "pictures":
            return self.task == "restoration"
        return self.name != "none" and self.used_for is not None

    @property
    def used_for(self) -> str | None:
        """The task; None where nothing is known of what a network gives."""
        may_be_anything = self.name in ("pictures", "none") or (":" in self.name and self.inputs)
        is_known = not may_be_anything or self.classes != "sorted"
        return self.task or (_TASKS.get(self.name, _OF_CLASSES)[0] if is_known else None)

    @model_validator(mode="after")
    def _task_fits(self) -> "Data":
        if self.task is not None and ":" in self.task:
            return self
        if self.task not in (None, *_ANY):
            raise ValueError(f"there is no task `{quoted(self.task)}`{nearest(quoted(self.task), _ANY)}")
        fitting = _ANY if ":" in self.name else _TASKS.get(self.name, _OF_CLASSES)
        if self.task not in (None, *fitting):
            raise ValueError(f"data.task: {self.task} cannot be learnt or judged by {self.name}: {', '.join(fitting)}")
        if self.scale != 1 and self.used_for != "restoration":
            raise ValueError("data.scale is for `task: restoration`, whose network gives a larger picture")
        if self.task in ("segmentation", "detection") and not self.has_labels and self.classes == "sorted":
            raise ValueError(f"data.classes is not set: {self.task} needs their number, a list or a JSON file of names")
        return self

    @model_validator(mode="after")
    def _gives_inputs(self) -> "Data":
        if self.inputs:
            _require_no_images(self.name, self.model_fields_set)
        return self

    @model_validator(mode="after")
    def _folder_is_named(self) -> "Data":
        if self.name in HELD and self.root is None:
            raise ValueError(f"data.root is not set; name the folder that holds {HELD[self.name]}")
        is_own = ":" in self.name
        tells_apart = self.name == "masks" or (
            is_own and self.used_for in ("classification", "segmentation", "detection")
        )
        if tells_apart and self.classes in ("sorted", "natural"):
            raise ValueError("data.classes is not set: give the number of the classes, a list, or a JSON file of names")
        if self.name in ("pictures", "none", "masks") or is_own:
            if self.classes == "natural":
                raise ValueError("data.classes: natural orders the folders of an imagefolder, and there are none")
        elif isinstance(self.classes, int):
            raise ValueError("data.classes is a number, which is for pictures and none; the folders are the classes")
        elif self.classes != "sorted" and self.name != "imagefolder":
            raise ValueError(f"data.classes orders the folders of an imagefolder; {self.name} has an order of its own")
        return self


def _require_no_images(data: str, given: Collection[str]) -> None:
    """Refuse `inputs` beside what prepares images, or for a data set of images.

    Args:
        data: its name.
        given: the keys that stand beside `inputs`.
    """
    if data != "none" and ":" not in data:
        raise ValueError(
            f"inputs is for networks of several inputs, and {data} has one image each. Set `data.name` to none, or to "
            "a data set of your own, module.path:name, whose items are the inputs"
        )
    if beside := [name for name in _OF_IMAGES if name in given]:
        raise ValueError(
            f"{beside[0]} is of networks of one image; several `inputs` are given to the network as the data set gives "
            "them. Take it away"
        )


_OF_IMAGES = (
    *("image_size", "interpolation", "color_order", "resize", "scale"),
    *("pixel_range", "mean", "std", "recalibrate_bn"),
)


class Training(Strict):
    """How a network is trained. Any of these can be set for one model under `models.<name>.training`."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=2)
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with Nesterov momentum, or AdamW")
    learning_rate: float = Field(0.1, gt=0, description="peak; of AdamW a hundredth of SGD's is usual")
    momentum: float = Field(0.9, ge=0, lt=1, description="of AdamW its first beta")
    weight_decay: float = Field(5e-4, ge=0, description="not on biases and batch norms")
    warmup_epochs: float = Field(1, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    ema_decay: float | None = Field(None, gt=0, lt=1, description="also keep an average of the weights; export it")
    augment: bool = True
    workers: int = Field(2, ge=0, description="processes that read images, for imagefolder")
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Model(Strict):
    """One network of the run. Its key in `models:` names the artifacts; `arch` defaults to that key."""

    arch: str = Field(description="a name of repnets.list_models(), `timm:NAME`, or `module.path:factory`")
    expand: Literal[STYLES] | None = Field(
        None, description="style of the training branches around its convolutions; `arch` is told as `arch+style`"
    )
    checkpoint: _Path | None = Field(
        None, description="a .safetensors, .pth or .ckpt of the user's own; skips training"
    )
    image_size: Side | tuple[Side, Side] = Field(description="default: the data's, as of the next two")
    color_order: ColorOrder
    resize: Resize
    inputs: _Inputs | None = Field(None, description="as `data.inputs`, which is the default")
    pixel_range: Literal[1, 255] = Field(1, description="1: pixels are divided by 255 before mean and std; 255: not")
    mean: tuple[_Level, ...] | None = Field(None, description="a number for each channel; default: the data's")
    std: tuple[_Spread, ...] | None = Field(None, description="likewise; of 0 and 1 where `pixel_range` is 255")
    recalibrate_bn: int = Field(
        0, ge=0, description="training images to estimate the batch norms' statistics from; 0: leave them"
    )
    training: Training

    @model_validator(mode="before")
    @classmethod
    def _arch_tells_the_style(cls, values: dict[str, Any]) -> dict[str, Any]:
        arch, style = values["arch"], values.get("expand")
        return {**values, "arch": f"{arch}+{style}"} if isinstance(arch, str) and style in STYLES else values

    @model_validator(mode="after")
    def _fits_the_channels(self) -> "Model":
        channels = channels_of(self.color_order)
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and len(given) != channels:
                order = self.color_order
                raise ValueError(f"{name} has {len(given)} numbers, and a network that takes {order} needs {channels}")
            if max(given or (0,)) > self.pixel_range:
                raise ValueError(
                    f"{name} is {list(given or ())}, and pixels are at most 1 there; set `pixel_range: 255` if the "
                    "network takes pixels from 0 to 255"
                )
        return self

    @model_validator(mode="after")
    def _enough_images(self) -> "Model":
        if 0 < self.recalibrate_bn < 32:
            raise ValueError("recalibrate_bn is a number of training images: 32 or more, or 0 to leave the batch norms")
        return self


class Verify(Strict):
    """Tolerances of the gate between the branched and the fused network."""

    float64_tolerance: float = Field(1e-9, gt=0, description="relative, on random and real input")
    float32_slack: float = Field(
        2.0, ge=1, description="how many times the branched net's own float32 error fused may have"
    )
    float32_tolerance: float = Field(
        5e-5, gt=0, description="relative error that fused may have in any case; half precision loses 20 times that"
    )
    batch_size: int = Field(256, ge=1)


class Quantize(Strict):
    """How the int8 program of a model is made, for the targets of `precision: int8`."""

    calibration_images: int = Field(512, ge=1, description="training images that ranges are taken from")
    max_metric_drop: float | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("max_metric_drop", "max_accuracy_drop"),
        description="the metric of the int8 program below that of the fused net; default 0.01 of a share, 0.3 of dB",
    )
    max_float_layers: int = Field(4, ge=0, description="layers that may stay in float if the accuracy drop is larger")
    qat_epochs: int = Field(0, ge=0, description="of training in int8, if it is still larger")
    qat_learning_rate: float = Field(1e-3, gt=0, description="of a weight's size, for Adam; falls to 0 as a cosine")


class Bundle(Strict):
    """Bundles in dist/ for devices."""

    golden_images: int = Field(8, ge=1, le=64, description="validation images that the self-test is made of")
    include_engine: bool = Field(False, description="TensorRT: also the engine; only for devices like this machine")
    signing_key: _Path | None = Field(None, description="your SSH key; the signature is a file beside the bundle")


class Config(Strict):
    """A whole run: config.yaml, what the command line changed in it, and every target.

    Attributes:
        candidates: the candidates of each target of `precision: auto`, as targets of one precision each.
        left_out: targets of int8, whose ranges come from pictures, where `data.name` is none.
    """

    data: Data
    models: dict[str, Model]
    verify: Verify
    quantize: Quantize
    targets: dict[str, Target]
    candidates: dict[str, tuple[Target, ...]]
    left_out: tuple[str, ...] = ()
    bundle: Bundle = Bundle()

    def exported(self, target: str) -> tuple[Target, ...]:
        """The targets to export for a target: itself, or for `precision: auto` its candidates."""
        return self.candidates.get(target) or (self.targets[target],)


def load(values: Mapping[str, Any], rules: Mapping[str, BackendRules], root: Path = Path()) -> Config:
    """Validate a configuration and the targets beside it.

    Args:
        values: config.yaml as a mapping, with the changes of ``--config`` merged in.
        rules: the rules of each backend for target.yaml, by its name: `backends.rules()`.
        root: folder that holds config.yaml and targets/.

    Raises:
        InputError: an unknown key, model, data set or backend, with the nearest valid name and the
            line where it stands; a value out of range.
    """
    source = root / "config.yaml"
    known = ("data", "models", "training", "verify", "quantize", "bundle", "targets")
    for key in values:
        if key not in known:
            raise unknown_key(source, (key,), known)
    parts = {key: section(values, source, (key,)) for key in known}
    data = validate(Data, parts["data"], source, ("data",))
    validate(Training, parts["training"], source, ("training",))
    models = {name: _model(name, parts, data, source) for name in parts["models"]}
    for name, model in models.items():
        if not data.has_labels and model.checkpoint is None:
            raise InputError(
                f"{where(source, ('models', name))}: `{name}` has no checkpoint, and images without labels train no "
                f"network. Set `checkpoint:` under its name to your .pth or .safetensors file, or `data.name` to a "
                "data set with classes."
            )
        if data.name == "none" and model.recalibrate_bn:
            raise InputError(
                f"{where(source, ('models', name))}: `recalibrate_bn` estimates statistics from images, and "
                "`data.name` is none. Take it away, or give pictures: `data: {name: pictures, root: FOLDER}`."
            )
    if not models:
        raise InputError(f"{source}: `models:` names no network, so there is nothing to build. Add one, e.g. `toy:`.")
    verify = validate(Verify, parts["verify"], source, ("verify",))
    quantize = validate(Quantize, parts["quantize"], source, ("quantize",))
    bundle = validate(Bundle, parts["bundle"], source, ("bundle",))
    declared, candidates = targets.load(parts["targets"], rules, root)
    left_out: tuple[str, ...] = ()
    if data.name == "none":
        left_out = tuple(name for name, target in declared.items() if target.precision == "int8")
        declared = {name: target for name, target in declared.items() if name not in left_out}
        candidates = {
            name: tuple(one for one in every if one.precision != "int8") for name, every in candidates.items()
        }
    return Config(
        data=data, models=models, verify=verify, quantize=quantize, targets=declared, candidates=candidates,
        left_out=left_out, bundle=bundle,
    )  # fmt: skip


def _model(name: str, parts: Mapping[str, Mapping[str, Any]], data: Data, source: Path) -> Model:
    path = ("models", name)
    if not is_name(name):
        raise InputError(
            f"{where(source, path)}: `{quoted(name)}` cannot name a folder of artifacts. Give the model a name of at "
            "most 64 letters, digits, `_`, `-` and `.`, and put the network under it: "
            f"`my_model: {{arch: {quoted(name)}}}`."
        )
    entry = section(parts["models"], source, path)
    own = section(entry, source, (*path, "training"))
    validate(Training, own, source, (*path, "training"))
    images = {key: getattr(data, key) for key in ("image_size", "color_order", "resize", "inputs")}
    values = {"arch": name, **images, **entry, "training": merged(parts["training"], own)}
    model = validate(Model, values, source, path)
    if model.inputs:
        try:
            _require_no_images(data.name, entry)
        except ValueError as error:
            raise InputError(f"{where(source, path)}: {error}.") from None
        if model.checkpoint is None:
            raise InputError(
                f"{where(source, path)}: `{name}` takes several inputs, {' and '.join(model.inputs)}, and has no "
                "checkpoint. Networks of several inputs are not trained here: set `checkpoint:` under its name to your "
                ".pth or .safetensors file."
            )
    return model
