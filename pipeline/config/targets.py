"""Deployments as the user declares them: targets/<name>/target.yaml, read strictly. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, model_validator

from pipeline.config import yaml_file
from pipeline.config.backend_rules import BackendRules, hold_device
from pipeline.config.schema import Strict, is_name, merged, section, unknown_key, validate, where
from pipeline.errors import InputError, nearest, quoted

Side = Annotated[int, Field(ge=1, le=100_000, strict=True)]
"""Of an image, pixels."""


def _each_once(threads: tuple[int, ...]) -> tuple[int, ...]:
    if not threads or len(set(threads)) < len(threads):
        raise ValueError(f"give one number of threads, or several different ones, not {quoted(list(threads))}")
    return threads


def _from_least_to_most(launches: tuple[int, int]) -> tuple[int, int]:
    if launches[0] > launches[1]:
        raise ValueError(f"give the least before the most, not {quoted(list(launches))}")
    return launches


class Check(Strict):
    """Gates on the exported file."""

    tolerance: float | None = Field(
        None, gt=0, description="relative error against the program; default 1e-4 for fp32, 2e-2 for fp16"
    )
    max_metric_drop: float | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("max_metric_drop", "max_accuracy_drop"),
        description="the metric of the file below that of the fused net; default 0.01 of a share, 0.3 of dB",
    )
    images: int | None = Field(
        None, ge=1, description="validation images, drawn at random, for runtimes that are slow; default: all"
    )


class Bench(Strict):
    """How long a benchmark runs, and on how many threads. Each number of threads is measured for itself."""

    threads: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        BeforeValidator(lambda given: (given,) if isinstance(given, int) else given),
        AfterValidator(_each_once),
    ] = Field((1,), description="one number or several; the first is the headline")
    warmup_seconds: float = Field(0.2, ge=0, description="of each form in each launch; on until it is steady")
    min_runs: int = Field(50, ge=10, description="of each form")
    max_seconds: float = Field(3.0, gt=0, description="for all the timed runs of both forms together")
    target_width: float = Field(
        0.02, ge=0, description="of the speed-up's interval, as a share of it; narrow enough to stop early"
    )
    launches: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_from_least_to_most)
    ] = Field((3, 5), description="at least and at most: how often the processes of all files are started afresh")
    sustained_seconds: float = Field(
        0, ge=0, description="that the file which ships runs on alone, to show throttling; 0: it does not"
    )


WEIGHTS_ALONE = ("w8", "w4", "palette6")
"""Precisions that compress the weights; the arithmetic is float16."""

_Precision = Literal["fp32", "fp16", "int8", "w8", "w4", "palette6"]
PRECISIONS: tuple[str, ...] = get_args(_Precision)
"""All that a file can be exported in."""


def _several(candidates: tuple[str, ...]) -> tuple[str, ...]:
    if len(candidates) < 2 or len(set(candidates)) < len(candidates):
        raise ValueError(f"give two or more different precisions to choose from, not {quoted(list(candidates))}")
    return candidates


class Target(Strict):
    """A deployment: targets/<name>/target.yaml."""

    name: str
    backend: str
    precision: Literal[_Precision, "auto"] = Field(
        description="int8: of weights and activations; w8, w4, palette6: Core ML's, of the weights alone; auto: the "
        "fastest of `candidates` that holds its gates"
    )
    candidates: Annotated[tuple[_Precision, ...], AfterValidator(_several)] | None = Field(
        None, description="what auto chooses from; default: what the backend has, and the oldest system reads"
    )
    baseline: Literal["fused", "branched", "none"] | None = Field(
        None, description="what the file is timed beside; default: fused for int8, else branched"
    )
    batch: int = Field(1, ge=1)
    image_size: Side | tuple[Side, Side] | None = Field(
        None, description="side of a square, or height, width; default: the size that the model was trained at"
    )
    device: str = Field("local", description="where bench runs: local, ssh://user@host:port, adb:SERIAL")
    device_python: str = Field("python3", min_length=1, description="on the device, where the runtime is installed")
    runner: str | None = Field(None, min_length=1, description="on the device, instead of Python: devices/runner.cpp")
    options: dict[str, Any] = Field(default_factory=dict)
    check: Check = Check()
    bench: Bench = Bench()

    @model_validator(mode="after")
    def _candidates_are_for_auto(self) -> "Target":
        if self.precision != "auto" and self.candidates:
            raise ValueError("candidates are what `precision: auto` chooses from; leave them out, or set it to auto")
        if self.precision == "auto" and self.baseline:
            raise ValueError("auto times its candidates against each other; leave out `baseline`")
        return self

    @property
    def forms(self) -> tuple[str, ...]:
        """What is exported of a network: the form that ships, and the baseline where there is one."""
        is_int8 = self.precision == "int8"
        baseline = self.baseline or ("fused" if is_int8 else "branched")
        return ("quantized" if is_int8 else "fused", *([] if baseline == "none" else [baseline]))


def load(
    overrides: Mapping[str, Any], rules: Mapping[str, BackendRules], root: Path
) -> tuple[dict[str, Target], dict[str, tuple[Target, ...]]]:
    """Read targets/<name>/target.yaml of every target.

    Args:
        rules: the rules of each backend for target.yaml, by its name.
        overrides: by the name of a target, keys of target.yaml that the configuration changes.
        root: folder that holds targets/.

    Returns:
        The targets by name; and of those of `precision: auto` what they choose from, as targets of one precision each.

    Raises:
        InputError: an unknown target, key or backend; values that do not go together.
    """
    files = {path.parent.name: path for path in sorted(root.glob("targets/*/target.yaml"))}
    for name in files:
        if not is_name(name):
            raise InputError(
                f"targets/{ascii(name)[1:-1][:80]}: a target's folder is named with at most 64 letters, digits, `_`, "
                "`-` and `.`, the first a letter or a digit, since commands are made of its name. Rename the folder."
            )
    for name in overrides:
        if name not in files:
            place = where(root / "config.yaml", ("targets", name))
            raise InputError(f"{place}: there is no targets/{quoted(name)}/target.yaml{nearest(name, list(files))}")
    targets, candidates = {}, {}
    for name, path in files.items():
        target = _read(name, path, section(overrides, root / "config.yaml", ("targets", name)), rules)
        targets[name] = _with_options(target, rules, path)
        if target.precision == "auto":
            candidates[name] = _candidates(target, rules, path)
    return targets, candidates


def _read(name: str, path: Path, override: Mapping[str, Any], rules: Mapping[str, BackendRules]) -> Target:
    values = merged(yaml_file.read(path), override)
    if "name" in values:  # the folder gives it
        raise unknown_key(path, ("name",), [one for one in Target.model_fields if one != "name"])
    target = validate(Target, {"name": name, **values}, path, ())
    if target.backend not in rules:
        hint = nearest(target.backend, list(rules))
        raise InputError(f"{where(path, ('backend',))}: there is no backend `{quoted(target.backend)}`{hint}")
    return target


def _candidates(target: Target, rules: Mapping[str, BackendRules], path: Path) -> tuple[Target, ...]:
    """What a target of `precision: auto` chooses from, without a baseline: they are each other's."""
    own = rules[target.backend]
    precisions = target.candidates or [one for one in own.candidates if _reads(target, own, one)]
    alone = {"baseline": "none", "candidates": None}
    return tuple(
        _with_options(target.model_copy(update={"precision": one, **alone}), rules, path) for one in precisions
    )


def _reads(target: Target, rules: BackendRules, precision: str) -> bool:
    """Whether the oldest system that a target runs on reads a precision."""
    if precision not in rules.at_least:
        return True
    key, lowest = rules.at_least[precision]
    return target.options.get(key, rules.options.model_fields[key].default) >= lowest


def _with_options(target: Target, rules: Mapping[str, BackendRules], path: Path) -> Target:
    """The target with all options of its backend, where they go together with its precision."""
    own = rules[target.backend]
    key, lowest = own.at_least.get(target.precision, ("", ""))
    given = {key: lowest} | target.options if key else target.options
    chosen = validate(own.options, given, path, ("options",))
    hold_device(target.backend, own, target.device, target.device_python, target.runner, path)
    if target.precision not in ("auto", *own.precisions):
        what = "compresses the weights alone" if target.precision in WEIGHTS_ALONE else "is a precision"
        *others, last = own.precisions
        having = [one.title for one in rules.values() if target.precision in one.precisions]
        raise InputError(
            f"{where(path, ('precision',))}: `precision: {target.precision}` {what}, which only "
            f"{' and '.join(having)} computes with. For {target.backend}, choose {', '.join(others)} or {last}."
        )
    if target.baseline == "fused" and target.precision != "int8":
        raise InputError(
            f"{where(path, ('baseline',))}: `precision: {target.precision}` ships the fused network, so "
            "`baseline: fused` would compare it with itself. Choose branched or none."
        )
    if key and getattr(chosen, key) < lowest:
        raise InputError(
            f"{where(path, ('options', key))}: `precision: {target.precision}` needs {lowest} or later, not "
            f"{getattr(chosen, key)}, whose {own.title} does not read it. Set `{key}: {lowest}`, or choose another "
            "precision."
        )
    return target.model_copy(update={"options": chosen.model_dump(mode="json")})
