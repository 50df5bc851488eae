"""manifest.json: the exported files of one network for one target, their input and preprocessing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.artifacts import digests
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.samples import shape_of
from pipeline.artifacts.verify_result import ProvedAccuracy
from pipeline.errors import InputError

FORMS = ("quantized", "fused", "branched")
"""All forms of a network; of those that are exported, the first is the one that ships."""


@dataclass(frozen=True)
class FileFacts:
    """A file or package.

    Attributes:
        sha256: of its content; see `digests.digest`.
        size_bytes: of the file, or of all files in the package.
    """

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, file: Path) -> "FileFacts":
        """Of a file as it is now."""
        parts = [part for part in file.rglob("*") if part.is_file()] if file.is_dir() else [file]
        return cls(digests.digest(file), sum(part.stat().st_size for part in parts))


@dataclass(frozen=True)
class ExportedForm:
    """One form of the network, ``fused`` say.

    Attributes:
        precision: of its files.
        files: by name; a runtime opens the first.
        facts: of the backend about the files.
    """

    precision: str
    files: Mapping[str, FileFacts]
    facts: Mapping[str, Any]

    @property
    def file_name(self) -> str:
        """Name of the file that a runtime opens."""
        return next(iter(self.files))


@dataclass(frozen=True)
class FreeRange:
    """The sizes of an axis that is free: ``min`` to ``max``."""

    min: int
    max: int


@dataclass(frozen=True)
class TensorFacts:
    """An input or output of a file.

    Attributes:
        name: as the file calls it.
        shape: of all axes, the batch first.
        dtype: ``float32`` or ``uint8``.
        free: the free axes, by ``batch``, ``height`` and ``width``; all others are as in `shape`. None for an output,
            whose batch is the input's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    free: Mapping[str, FreeRange] | None = None


@dataclass(frozen=True)
class Lineage:
    """What the files were exported from.

    Attributes:
        arch: of the network.
        weights: ``raw`` or ``ema``.
        form: of the checkpoint, ``training`` or ``deploy``.
        recalibrated: by the stage `recalibrate`; None if it did not run.
        checkpoint, fused, quantized: sha256 of each.
        accuracy: that verify found.
        verify: sha256 of verify.json; left out in bundles of older versions.
    """

    arch: str
    weights: str
    form: str
    recalibrated: Mapping[str, Any] | None
    checkpoint: str
    fused: str
    quantized: str | None
    accuracy: ProvedAccuracy
    verify: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        target, model, backend: of the configuration.
        precision: of the form that ships.
        forms: by name; the first is the one that ships, the second, if there is one, is the baseline.
        extras: files that belong to no form, by name.
        input, outputs: the same for every file; of several inputs the first.
        preprocessing: how an image becomes the input.
        lineage: what the files were exported from.
        versions: of the packages that made them.
        further_inputs: of a network of several inputs, all but the first; left out for one.
    """

    TITLE: ClassVar[str] = "manifest"
    STAGE: ClassVar[str] = "export"
    SCHEMA: ClassVar[int] = 2

    target: str
    model: str
    backend: str
    precision: str
    forms: Mapping[str, ExportedForm]
    extras: Mapping[str, FileFacts]
    input: TensorFacts
    outputs: tuple[TensorFacts, ...]
    preprocessing: Preprocessing
    lineage: Lineage
    versions: Mapping[str, str | None]
    further_inputs: tuple[TensorFacts, ...] | None = None

    def __post_init__(self) -> None:
        if not self.forms or not all(form.files for form in self.forms.values()):
            raise ValueError("it names no file")
        if list(self.forms) != [form for form in FORMS if form in self.forms]:
            raise ValueError(f"its forms are {', '.join(self.forms)}; there are {', '.join(FORMS)}, in this order")

    @property
    def inputs(self) -> tuple[TensorFacts, ...]:
        """All inputs, in order."""
        return (self.input, *(self.further_inputs or ()))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of a batch of samples that a file takes; see `pipeline.artifacts.samples`."""
        return shape_of([one.shape for one in self.inputs])

    @property
    def shipped(self) -> str:
        """Name of the form that ships."""
        return next(iter(self.forms))

    @property
    def shipped_form(self) -> ExportedForm:
        """The form that ships."""
        return self.forms[self.shipped]

    @property
    def shipped_files(self) -> dict[str, FileFacts]:
        """The files of the form that ships, and the extras, by name."""
        return {**self.shipped_form.files, **self.extras}

    @property
    def files(self) -> dict[str, FileFacts]:
        """All files, by name."""
        return {name: facts for form in self.forms.values() for name, facts in form.files.items()} | dict(self.extras)

    @property
    def subjects(self) -> dict[str, str]:
        """Sha256 of what the files were exported from, and of each file, by name; see `artifacts.evidence`.

        The manifest itself has no digest: it is what check.json is evidence of.
        """
        made_from = {name: getattr(self.lineage, name) for name in ("checkpoint", "fused", "quantized", "verify")}
        files = {name: facts.sha256 for name, facts in self.files.items()}
        return {name: sha256 for name, sha256 in (made_from | files).items() if sha256}

    def describes(self, file: Path) -> bool:
        """Whether a file has the content that the manifest describes under its name."""
        facts = self.files.get(file.name)
        return facts is not None and digests.digest(file) == facts.sha256

    def opened(self, files: Iterable[Path]) -> dict[str, Path]:
        """The file of each form that a runtime opens; all files of the forms must be there and as described.

        Raises:
            InputError: a file is missing, or has other content.
        """
        places = {file.name: file for file in files}
        self.require(places, [name for form in self.forms.values() for name in form.files])
        return {name: places[form.file_name] for name, form in self.forms.items()}

    def require(self, places: Mapping[str, Path], names: Iterable[str]) -> None:
        """Check that files are there and have the content that the manifest describes.

        Args:
            places: paths of files, by name.
            names: of the files to check.

        Raises:
            InputError: one is missing, or has other content.
        """
        for name in names:
            if name not in places:
                raise InputError(f"the manifest names {name}, but it was not given; pass it with --files.")
            if not self.describes(places[name]):
                raise InputError(
                    f"{places[name]} is not the file that its manifest describes, so what is said of it would stand "
                    "under a wrong name. Delete it and run again, which exports it anew."
                )
