"""The interface of a backend, which is all that the rest of the pipeline uses of a runtime family.

A backend is a folder pipeline/backends/<name>/ whose module `backend` defines `BACKEND`, a `Backend`, and `RUNTIME`,
its `Runtime`. An ability that it lacks is None. tests/pipeline/backends/test_contract.py tests every backend.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.artifacts.export_result import TensorFacts
from pipeline.artifacts.manifest import ExportSpec, Unavailable
from pipeline.backends.runtime import Runtime
from pipeline.backends.signatures import Signature
from pipeline.config.backend_rules import BackendRules
from pipeline.devices import Device
from pipeline.devices.facts import Inventory

if TYPE_CHECKING:
    import numpy as np
    import torch

Facts = dict[str, Any]
"""Facts about exported files, as JSON types, for manifest.json."""


class Export(Protocol):
    """Writes files."""

    def __call__(self, program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> Facts:
        """Write a program.

        Args:
            program: float32, of static shape ``spec.input_shape``; for ``int8``, with quantize and dequantize
                operations.
            files: paths to write, in the order of `Backend.files`.
            spec: the specification of the file.

        Raises:
            StageError: the exporter cannot write an operation.
        """


class StoredWeights(Protocol):
    """Reads the weights that an exporter has compressed."""

    def __call__(self, file: Path, precision: str, weights: "Mapping[str, np.ndarray]") -> "Mapping[str, np.ndarray]":
        """Each layer's weights in the file, as float32; empty for a precision that does not compress weights.

        Args:
            file: the exported file.
            precision: of the file.
            weights: the network's own, by the layer's name.

        Raises:
            GateError: the difference of a weight from the network's own exceeds the rounding of the precision.
        """


@dataclass(frozen=True)
class Served:
    """A device's own Python can run the files.

    Attributes:
        module: defines `RUNTIME`, and imports little of this project, because its imports are copied to the device.
        packages: distributions that it needs there.
    """

    module: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """A runner on a device (devices/runner.cpp) can run the files, and writes an event trace.

    Attributes:
        warmup_runs: executions at the start of the trace that are ignored.
        read: (trace, runs, file) -> operations, as `Runtime.profile` gives them.
    """

    warmup_runs: int
    read: Callable[[bytes, int, Path], list[dict[str, Any]]]


class BuiltFiles(Protocol):
    """Files that a program on the device has built there."""

    versions: Mapping[str, str | None]

    def time_files(self, *, warmup_seconds: float, min_runs: int, max_seconds: float) -> dict[str, list[list[float]]]:
        """Rounds of ms of each form, in turn."""

    def time_alone(self, form: str, seconds: float) -> list[float]:
        """The ms of each run of one form, without a warm-up."""

    def transfer_ms(self, form: str) -> dict[str, float]:
        """As `Runtime.transfer_ms`."""

    def profile(self, form: str, runs: int) -> list[dict[str, Any]]:
        """As `Runtime.profile`."""


@dataclass(frozen=True)
class BuiltOnDevice:
    """A program on the device builds the files there and times them.

    Attributes:
        open: (device, files by form, the script beside them, input shape) -> a context with the built files.
        versions: (device) -> versions of the software that builds there.
    """

    open: Callable[[Device, Mapping[str, Path], Path, tuple[int, ...]], AbstractContextManager[BuiltFiles]]
    versions: Callable[[Device], Mapping[str, str | None]]


@dataclass(frozen=True)
class Requirement:
    """A Python distribution or a program that has to be installed for some of the work.

    Attributes:
        name: of the distribution or program.
        why: its purpose, a few words.
        work: what cannot be done without it: ``all``; ``build`` (and then no check either); ``check``; ``engine``: one
            of several alternatives; ``device`` and ``sign``: no target is built with it.
        kinds: targets that need it: names of backends, and ``int8`` for targets of that precision; empty: all.
        is_program: whether it is a program on PATH.
        linux, mac: the command that installs a program.
        install: what pip installs for a distribution; default: its name.
    """

    name: str
    why: str
    work: Literal["all", "build", "check", "engine", "device", "sign"] = "all"
    kinds: tuple[str, ...] = ()
    is_program: bool = False
    linux: str = ""
    mac: str = ""
    install: str = ""


@dataclass(frozen=True)
class Can:
    """Whether something can be done with a target on a machine.

    Attributes:
        yes: whether it can.
        how: with what; or why not, in a word.
        missing: reasons why not, with remedies; empty if it can.
    """

    yes: bool
    how: str
    missing: tuple[Unavailable, ...] = ()


def cannot(how: str, reason: str, remedy: str) -> Can:
    """A `Can` with one reason why not."""
    return Can(False, how, (Unavailable(reason, remedy),))


@dataclass(frozen=True)
class AppLayout:
    """The folders for an app's project.

    Attributes:
        places: by the path in the bundle (``@FILE@`` for the network), the folders that the file goes to, separated by
            blanks.
        next_steps: instructions for the user; ``{folder}``, ``{file}`` and ``{stem}`` are filled in.
    """

    places: Mapping[str, str]
    next_steps: str


XCODE_STEPS = """\
Xcode: drag {folder}/xcode into the project's navigator, tick "Copy items if needed" and the app's target."""
"""The part of `AppLayout.next_steps` that is the same for every project in Xcode."""


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """The part of a bundle that differs between backends, besides the exported files.

    Attributes:
        folder: of the texts and the code. Python files are shipped unchanged; in others ``@NAME@`` is filled in.
        needs: what the self-test needs besides Python, in words.
        files: by the path in the bundle, the name in `folder`; ``predict.py`` is used by the self-test.
        files_for_pixels: the same, for a file that takes an image of 8-bit pixels.
        usage: the name in `folder` of the text for the README.
        time_limit_s: of the self-test's runtime.
        app: None if no phone's app runs the files.
        machine_suffix: of a file for machines of the builder's kind only, which is included only with
            `bundle.include_engine`; empty: there is none.
        hold_machine_file: (facts, name, is_there). InputError if no device can use that file.
        beside: (options) -> more files, by their name in the bundle.
        describe: (options, inputs of the file, facts of the machine's file or None) -> `BundleManifest.facts`.
    """

    folder: Path
    needs: str
    files: Mapping[str, str]
    files_for_pixels: Mapping[str, str] = field(default_factory=dict)
    usage: str = "usage.md"
    time_limit_s: int = 300
    app: AppLayout | None = None
    machine_suffix: str = ""
    hold_machine_file: Callable[[Mapping[str, Any], str, bool], None] | None = None
    beside: Callable[[Mapping[str, Any]], Mapping[str, Path]] | None = None
    describe: Callable[[Mapping[str, Any], Sequence[TensorFacts], Mapping[str, Any] | None], Facts] | None = None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A runtime family. None stands for an ability that it lacks.

    Attributes:
        name: of its folder.
        title: of its runtime, for people.
        runtime: runs its files.
        checked_by: the runtime with which `check` runs a file on this machine, for people.
        suffixes: of files that this backend reads, and no other.
        packages: distributions whose versions the files depend on.
        run_by: distributions that run the files.
        signature: (file) -> its input and output; None for a file that only its runtime can open. InputError if it is
            damaged.
        census: (file) -> operations by type, and ``convolution``, ``batch_norm``, ``join``, ``int8`` and ``total``.
        data_files: (file) -> files beside it that are a part of it, such as its weights.
        unavailable: () -> why the runtime cannot be used on this machine; None if it can.
        export: writes a program; None for a backend that only reads files.
        files: () -> names of the files of each form, such as ``{form}.pte``; a runtime opens the first.
        extras: names of files that are written once for all forms.
        write_extras: (files, spec). Writes these.
        host: () -> properties of this machine that the files depend on; None: they are the same on every machine.
        inspect: (files, facts, spec). GateError or InputError if the files contradict the manifest.
        stored_weights: for precisions that compress only the weights.
        float_beside_int8: precision of the values in an int8 file that are not int8.
        stands_in_for: precisions in which it is the reference for targets whose runtime is not here.
        rules: for target.yaml; None: no target can have this backend.
        served, traced, built: the ways in which a device can run the files.
        runner_help: how to build a runner; ``{version}`` is replaced by the version of the first of `run_by`.
        requirements: what has to be installed.
        built_here: (names of installed requirements) -> what `export` writes here, for people.
        can_run_on: (machine, accepted versions by distribution) -> whether that machine can run the files.
        bundle: None: it has no bundles.
    """

    name: str
    title: str
    runtime: Runtime
    checked_by: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    run_by: tuple[str, ...] = ()
    signature: Callable[[Path], Signature | None]
    census: Callable[[Path], dict[str, int]]
    unavailable: Callable[[], Unavailable | None]
    data_files: Callable[[Path], tuple[Path, ...]] = lambda file: ()

    export: Export | None = None
    files: Callable[[], tuple[str, ...]] = tuple
    extras: tuple[str, ...] = ()
    write_extras: Callable[[Sequence[Path], ExportSpec], None] | None = None
    host: Callable[[], str | None] = lambda: None
    inspect: Callable[[Sequence[Path], Mapping[str, Any], ExportSpec], None] | None = None
    stored_weights: StoredWeights | None = None
    float_beside_int8: Literal["fp32", "fp16"] = "fp32"
    stands_in_for: tuple[str, ...] = ()

    rules: BackendRules | None = None
    served: Served | None = None
    traced: Traced | None = None
    built: BuiltOnDevice | None = None
    runner_help: str = ""
    requirements: tuple[Requirement, ...] = ()
    built_here: Callable[[set[str]], str] = lambda met: "yes"
    can_run_on: Callable[[Inventory, Mapping[str, str]], Can] | None = None
    bundle: BundleParts | None = None

    def file_name(self, form: str) -> str:
        """Name of the file of a form that a runtime opens."""
        return self.files()[0].format(form=form)

    def file_names(self, forms: Sequence[str]) -> list[str]:
        """Names of all files for these forms of a network, without manifest.json."""
        return [file.format(form=form) for form in forms for file in self.files()] + list(self.extras)

    @property
    def packages_of_figures(self) -> list[str]:
        """Distributions whose versions a measurement depends on: those of the files, and those that run them."""
        return list(dict.fromkeys((*self.packages, *self.run_by)))
