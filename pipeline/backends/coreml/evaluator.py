"""Run a saved ML program with torch, on any system.

A program is read once into a flat list of steps: constants decoded, attributes resolved, every operation looked up.
Two arithmetics: float32 throughout on the weights as they are stored, or the program's own, where each FLOAT16 output
is rounded to half, an overflow to infinity. It does not reproduce the rounding of Apple's kernels.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends.coreml import packages, values
from pipeline.backends.coreml.operations import NEVER_ROUND, OPERATIONS
from pipeline.backends.coreml.values import Declared
from pipeline.errors import InputError, StageError, reading

if TYPE_CHECKING:
    import numpy as np
    import torch

_SUFFIX = re.compile(r"(_0)?(_batch_norm_1d)?((_(cast|to)_(fp16|fp32|u?int\d+|bool))+(_\d+)?)?$")
_AGAIN = "Copy the whole folder again or run the export again."


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name, kind: of its first output, and the type of operation.
        run: from the values so far, by name, to its outputs.
        outputs: their names, with what each is declared to be.
        spent: values that no later step needs.
    """

    name: str
    kind: str
    run: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    outputs: tuple[tuple[str, Declared], ...]
    spent: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A package ready to be run.

    Attributes:
        file: the package.
        exact: float32 arithmetic throughout; else the program's own.
        inputs: what each input is declared to be, by name.
        outputs: names of the outputs.
        constants: by name.
        steps: in order of execution.
        description: the specification's ``ModelDescription``.
    """

    file: Path
    exact: bool
    inputs: Mapping[str, Declared]
    outputs: tuple[str, ...]
    constants: Mapping[str, Any]
    steps: tuple[Step, ...]
    description: Any


def load(file: Path, exact: bool = False) -> Program:
    """Read a package.

    Args:
        file: an .mlpackage, a folder.
        exact: take every FLOAT16 for float32; else round what is FLOAT16.

    Raises:
        InputError: the package is damaged, or not an ML program.
        StageError: an operation, or an input of one, that the evaluator does not know.
    """
    package = packages.open_package(file)
    with reading(file, _AGAIN):
        return _load(package, exact)


def _load(package: packages.Package, exact: bool) -> Program:
    file, specification = package.folder, package.specification
    block, inputs = packages.main_block(file, specification)
    constants: dict[str, Any] = {}
    last_use = {name: index for index, operation in enumerate(block.operations) for name in _used(operation)}
    steps = []
    known = {one.name: _declared(file, one, "input") for one in inputs}
    names = set(known)
    for index, operation in enumerate(block.operations):
        if operation.type == "const":
            name = operation.outputs[0].name
            constants[name] = _constant(package, operation.attributes["val"], name)
            continue
        spent = {name for name in _used(operation) if last_use[name] == index and name not in constants}
        step = _step(package, operation, constants, spent - set(block.outputs), exact)
        if operation.type.startswith("constexpr_"):
            constants.update(_outputs(file, step, constants, exact))
            continue
        for name in _used(operation):
            if name not in names and name not in constants:
                raise InputError(f"{file} is damaged: `{step.name}` needs `{name}`, which nothing gives. {_AGAIN}")
        names |= {name for name, _ in step.outputs}
        steps.append(step)
    if missing := [name for name in block.outputs if name not in names and name not in constants]:
        raise InputError(f"{file} is damaged: nothing gives its output `{missing[0]}`. {_AGAIN}")
    return Program(file, exact, known, tuple(block.outputs), constants, tuple(steps), specification.description)


def run(program: Program, inputs: Mapping[str, "np.ndarray"]) -> dict[str, Any]:
    """Run a program once.

    Args:
        program: from `load`.
        inputs: an array for each input, by name.

    Returns:
        The outputs by name: arrays, and of a classifier a label and a dictionary of probabilities.

    Raises:
        InputError: an input that is missing, unknown, or of another shape than the program declares.
        StageError: an operation fails, or gives what it is not declared to give.
    """
    found = dict(program.constants)
    for _, given in _walk(program, inputs, found):
        found.update(given)
    return {name: _as_array(found[name]) for name in program.outputs}


def layers(program: Program, inputs: Mapping[str, "np.ndarray"]) -> dict[str, "np.ndarray"]:
    """What each operation gives, in order of execution; the arguments and errors are `run`'s.

    An output has the name of the node of the torch.export program, decomposed, that it came from, as far as
    coremltools kept it: what it appends is taken off. A convolution with its batch norm folded in has the
    batch norm's name. Of several outputs the first has the name itself, the others ``name[1]`` and so on.
    Where several operations share a name, the last one's output is kept, in its place.
    """
    found = dict(program.constants)
    given: dict[str, np.ndarray] = {}
    for step, outputs in _walk(program, inputs, found):
        found.update(outputs)
        for index, value in enumerate(outputs.values()):
            if hasattr(value, "numpy"):
                name = node_name(step.name) + (f"[{index}]" if index else "")
                given.pop(name, None)
                given[name] = value.numpy().astype("float32")
    return given


def node_name(output: str) -> str:
    """The node that an output is named after: ``relu_1`` for ``relu_1_cast_fp16``."""
    return _SUFFIX.sub("", output)


def _walk(
    program: Program, inputs: Mapping[str, "np.ndarray"], found: dict[str, Any]
) -> Iterator[tuple[Step, dict[str, Any]]]:
    import torch

    if set(inputs) != set(program.inputs):
        raise InputError(f"{program.file} takes {sorted(program.inputs)}, not {sorted(inputs)}. Name its inputs.")
    with torch.inference_mode():
        for name, what in program.inputs.items():
            found[name] = _as_input(program, name, what, inputs[name])
        for step in program.steps:
            outputs = _outputs(program.file, step, found, program.exact)
            for name in step.spent:
                found.pop(name, None)
            yield step, outputs


def _as_input(program: Program, name: str, what: Declared, array: "np.ndarray") -> "torch.Tensor":
    import numpy as np
    import torch

    if not _fits(array.shape, what.shape):
        raise InputError(
            f"{program.file} takes `{name}` of shape {list(what.shape)}, not {list(array.shape)}. Feed that shape, "
            f"or export the network again for the other."
        )
    value = torch.from_numpy(np.ascontiguousarray(array)).to(values.carried(what.kind))
    return value.half().float() if what.kind == "float16" and not program.exact else value


def _outputs(file: Path, step: Step, found: Mapping[str, Any], exact: bool) -> dict[str, Any]:
    """Run a step, hold what it gives against its declaration, and round what is half."""
    try:
        given = step.run(found)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        why = " ".join(str(e).split())[:300].rstrip(".")
        raise StageError(
            f"{file}: the operation `{step.name}` ({step.kind}) cannot be computed: {type(e).__name__}: {why}. Either "
            f"the package is damaged ({_AGAIN.lower().rstrip('.')}), or the evaluator does not know this form of it."
        ) from e
    if len(given) != len(step.outputs):
        raise _contradiction(file, step, f"{len(given)} outputs", f"{len(step.outputs)} outputs")
    outputs = {}
    for value, (name, what) in zip(given, step.outputs, strict=True):
        if what.kind is not None and what.kind != "string":
            value = _held(file, step, value, what)
            if what.kind == "float16" and not exact and step.kind not in NEVER_ROUND:
                value = value.half().float()
        outputs[name] = value
    return outputs


def _held(file: Path, step: Step, value: Any, what: Declared) -> Any:
    import torch

    kind = values.carried(what.kind)
    if value.dtype != kind:
        if value.dtype != torch.int64 or kind.is_floating_point or kind == torch.bool:
            raise _contradiction(file, step, str(value.dtype).removeprefix("torch."), what.kind)
        value = value.to(kind)  # torch gives places as int64 whatever they are declared to be
    if not _fits(value.shape, what.shape):
        raise _contradiction(file, step, f"a shape of {list(value.shape)}", f"one of {list(what.shape)}")
    return value


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...] | None) -> bool:
    if declared is None or shape == declared:
        return True
    pairs = zip(shape, declared, strict=False)
    return len(shape) == len(declared) and all(want in (None, size) for size, want in pairs)


def _contradiction(file: Path, step: Step, given: str, wanted: str) -> StageError:
    return StageError(
        f"{file}: the operation `{step.name}` ({step.kind}) gives {given}, but the package declares {wanted}. The "
        f"package contradicts itself or is damaged; {_AGAIN[0].lower()}{_AGAIN[1:]}"
    )


def _step(
    package: packages.Package, operation: Any, constants: Mapping[str, Any], spent: set[str], exact: bool
) -> Step:
    """Look an operation up, and bind what is constant of it."""
    file, name = package.folder, operation.outputs[0].name if operation.outputs else operation.type
    what = f"{file}: the operation `{name}` ({operation.type})"
    function = OPERATIONS.get(operation.type)
    if function is None or operation.blocks:
        raise StageError(
            f"{what} is not one that the evaluator knows. Check the package on a Mac, where Core ML itself runs it, "
            f"or write the network without it."
        )
    fixed: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    parameters = inspect.signature(function).parameters
    attributes = {key: value for key, value in operation.attributes.items() if key != "name"}
    for key in (*attributes, *operation.inputs):
        if key not in parameters:
            raise StageError(
                f"{what} has an input `{key}` that the evaluator does not know. Check the package on a Mac, where "
                f"Core ML itself runs it, or write the network without it."
            )
    for key, value in attributes.items():
        fixed[key] = _as_parameter(parameters[key], [_constant(package, value, name)])
    for key, argument in operation.inputs.items():
        sources = [one.name or _constant(package, one.value, name) for one in argument.arguments]
        if all(not isinstance(one, str) or one in constants for one in sources):
            known = [constants[one] if isinstance(one, str) else one for one in sources]
            fixed[key] = _as_parameter(parameters[key], known)
        else:
            bound[key] = sources
    try:
        inspect.signature(function).bind(**fixed, **bound)
    except TypeError as error:
        raise InputError(f"{what} is incomplete: {error}. {_AGAIN}") from None
    outputs = tuple((one.name, _declared(file, one, "output")) for one in operation.outputs)
    return Step(name, operation.type, _runner(function, parameters, fixed, bound), outputs, tuple(spent))


def _runner(
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    fixed: Mapping[str, Any],
    bound: Mapping[str, list[Any]],
) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    tensors = {key: one[0] for key, one in bound.items() if len(one) == 1 and _takes(parameters[key]) == "Tensor"}
    others = {key: one for key, one in bound.items() if key not in tensors}

    def run(found: Mapping[str, Any]) -> tuple[Any, ...]:
        given = {key: found[name] for key, name in tensors.items()}
        for key, names in others.items():
            sources = [found[one] if isinstance(one, str) else one for one in names]
            given[key] = _as_parameter(parameters[key], sources)
        result = function(**fixed, **given)
        return result if isinstance(result, tuple) else (result,)

    return run


def _takes(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    if kind is parameter.empty or kind in ("Tensor", "Tensor | None"):
        return "Tensor"
    return "list[Tensor]" if kind == "list[Tensor]" else "Python"


def _as_parameter(parameter: inspect.Parameter, sources: list[Any]) -> Any:
    match _takes(parameter):
        case "list[Tensor]":
            return sources
        case "Tensor":
            return sources[0]
    return sources[0].tolist() if hasattr(sources[0], "tolist") else sources[0]


def _used(operation: Any) -> set[str]:
    return {one.name for argument in operation.inputs.values() for one in argument.arguments if one.name}


def _constant(package: packages.Package, value: Any, name: str) -> Any:
    def read(blob: Any, kind: Any, count: int) -> "np.ndarray":
        return packages.read_weights(package, blob, kind, count)

    try:
        return values.decode(value, read)
    except InputError as error:
        if str(package.folder) in str(error):
            raise
        raise InputError(f"{package.folder} is damaged: of the constant `{name}`, {error} {_AGAIN}") from None


def _declared(file: Path, named: Any, what: str) -> Declared:
    try:
        return values.declared(named.type)
    except InputError as error:
        raise StageError(
            f"{file}: the {what} `{named.name}` cannot be computed: {error} Check the package on a Mac, where Core ML "
            f"itself runs it."
        ) from None


def _as_array(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else value
