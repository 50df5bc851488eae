"""The contract of a backend: all that the rest of the pipeline may ask of a runtime family.

A backend is a folder pipeline/backends/<name>/ whose module `backend` holds `BACKEND`, a `Backend`, and `RUNTIME`, its
`Runtime`. An ability that it does not have is None. tests/pipeline/backends/test_contract.py holds every backend to
this contract.
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
"""What an exporter tells of the files that it wrote, as JSON types; it stands in manifest.json."""


class Export(Protocol):
    """Writes files."""

    def __call__(self, program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> Facts:
        """Write a program.

        Args:
            program: float32, of static shape ``spec.input_shape``; for ``int8``, with quantize and dequantize
                operations.
            files: where they go, in the order of `Backend.files`.
            spec: what is asked for.

        Raises:
            StageError: the exporter cannot write an operation.
        """


class StoredWeights(Protocol):
    """Reads what an exporter that compresses weights made of them."""

    def __call__(self, file: Path, precision: str, weights: "Mapping[str, np.ndarray]") -> "Mapping[str, np.ndarray]":
        """Each layer's float32 weights as the file stores them; empty for a precision that compresses none.

        Args:
            file: the exported file.
            precision: of the file.
            weights: the network's own, by the layer's name.

        Raises:
            GateError: a weight is farther from the network's own than the precision rounds.
        """


@dataclass(frozen=True)
class Served:
    """A device's own Python can run the files.

    Attributes:
        module: holds a `RUNTIME`, and imports little of this project, since all that it imports is brought along.
        packages: distributions that it needs there.
    """

    module: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """A runner on a device (devices/runner.cpp) can run the files, and writes an event trace.

    Attributes:
        warmup_runs: executions at the trace's start that do not count.
        read: (trace, runs, file) -> operations, as `Runtime.profile` gives them.
    """

    warmup_runs: int
    read: Callable[[bytes, int, Path], list[dict[str, Any]]]


class BuiltFiles(Protocol):
    """Files that a program on a device has built there."""

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
    """A program of a device's own builds the files there and times them.

    Attributes:
        open: (device, files by form, the script beside them, input shape) -> a context with the built files.
        versions: (device) -> versions of what builds there.
    """

    open: Callable[[Device, Mapping[str, Path], Path, tuple[int, ...]], AbstractContextManager[BuiltFiles]]
    versions: Callable[[Device], Mapping[str, str | None]]


@dataclass(frozen=True)
class Requirement:
    """Something that has to be installed for some of the work.

    Attributes:
        name: of the Python distribution, or of the program.
        why: what it does here, a few words.
        work: what cannot be done without it: ``all``; ``build``, and then nothing is checked either; ``check``;
            ``engine``, of which any one will do; ``device`` and ``sign``, which no target is built with.
        kinds: whose targets need it: backends by name, and ``int8`` for those of that precision; empty: all.
        is_program: a program on PATH, and no distribution.
        linux, mac: the command that brings a program.
        install: what pip installs to bring a distribution; default: its name.
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
    """Whether one thing can be done with a target on a machine.

    Attributes:
        yes: it can.
        how: by what, or in a word why not.
        missing: each a reason and what to do about it; empty where it can.
    """

    yes: bool
    how: str
    missing: tuple[Unavailable, ...] = ()


def cannot(how: str, reason: str, remedy: str) -> Can:
    """A `Can` of one reason."""
    return Can(False, how, (Unavailable(reason, remedy),))


@dataclass(frozen=True)
class AppLayout:
    """How an app's project takes a bundle.

    Attributes:
        places: by the path in the bundle, ``@FILE@`` for the network's, the folders that it goes to, with blanks
            between.
        next_steps: in words, what to do then; ``{folder}``, ``{file}`` and ``{stem}`` are filled in.
    """

    places: Mapping[str, str]
    next_steps: str


XCODE_STEPS = """\
Xcode: drag {folder}/xcode into the project's navigator, tick "Copy items if needed" and the app's target."""
"""The part of `AppLayout.next_steps` that is the same for all that goes into Xcode."""


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """What goes into a bundle besides the files and what is the same for every backend.

    Attributes:
        folder: of the texts and the code. Python files are shipped as they are; in the others ``@NAME@`` is filled in.
        needs: what the self-test asks for beside Python, in words.
        files: by the path in the bundle, the name in `folder`; ``predict.py`` is the self-test's.
        files_for_pixels: the same, where a file takes an image of 8-bit pixels.
        usage: the name in `folder` of the text for the README.
        time_limit_s: of the self-test's runtime.
        app: None where no phone's app runs the files.
        machine_suffix: of the file that is for machines of the builder's very kind, and goes along only where
            `bundle.include_engine` asks for it; empty: there is none.
        hold_machine_file: (facts, name, is_there). InputError where that file is of no use to any device.
        beside: (options) -> more files, by their name in the bundle.
        describe: (options, input of the file, facts of the machine's file or None) -> `BundleManifest.facts`.
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
    describe: Callable[[Mapping[str, Any], TensorFacts, Mapping[str, Any] | None], Facts] | None = None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A runtime family. What is None, it cannot do.

    Attributes:
        name: of its folder.
        title: of its runtime, in words.
        runtime: runs its files.
        checked_by: the runtime that `check` runs a file by on this machine, in words.
        suffixes: of files that are this backend's to read; no other backend has the same.
        packages: distributions whose versions shape the files.
        run_by: distributions that run them.
        signature: (file) -> what it takes and gives; None for a file that only its runtime can open. InputError where
            it is damaged.
        census: (file) -> operations by type, and ``convolution``, ``batch_norm``, ``join``, ``int8`` and ``total``.
        data_files: (file) -> the files beside it that hold a part of it, its weights say.
        unavailable: () -> why the runtime cannot be used on this machine; None where it can.
        export: writes a program; None for a backend that only reads.
        files: () -> names of what it writes for each form, ``{form}.pte`` say; the first is what a runtime opens.
        extras: names of what it writes beside them, once.
        write_extras: (files, spec). Writes these.
        host: () -> what of this machine the files depend on; None: nothing, so any machine's will do for all.
        inspect: (files, facts, spec). GateError or InputError where what the files say of themselves is not what the
            manifest does.
        stored_weights: for precisions that compress weights alone.
        float_beside_int8: how the numbers of an int8 file that are not int8 are stored and computed.
        stands_in_for: precisions in which it is the reference for targets whose runtime is not here.
        rules: what target.yaml may say; None: it is no target's.
        served, traced, built: the ways in which a device runs the files.
        runner_help: how to build a runner, ``{version}`` to be filled in with that of the first of `run_by`.
        requirements: what has to be installed.
        built_here: (names of the requirements that are met) -> what `export` writes here, in words.
        can_run_on: (machine, versions that will do by distribution) -> whether that machine can run the files.
        bundle: None: nothing is shipped.
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
        """Names of all the files that are written for these forms of a network, manifest.json left out."""
        return [file.format(form=form) for form in forms for file in self.files()] + list(self.extras)

    @property
    def packages_of_figures(self) -> list[str]:
        """Distributions whose versions shape what is measured: those of the files, and what runs them."""
        return list(dict.fromkeys((*self.packages, *self.run_by)))
