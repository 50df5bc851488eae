"""The two files called bundle.json: one in a bundle, that describes it; one beside a target's files, that names it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.artifacts.check_result import GateResult
from pipeline.artifacts.export_result import FileFacts, Lineage, TensorFacts
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.metric import TOP_1, Metric


@dataclass(frozen=True)
class GoldenCase:
    """One inference whose result is known.

    Attributes:
        input, output: paths in the bundle: raw little-endian numbers.
        labels: the true class of each image.
    """

    input: str
    output: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class BundledOutput:
    """The output of the bundled file.

    Attributes:
        name, shape, dtype: see `TensorFacts`.
        kind: ``logits`` or ``probabilities``; of a network without classes ``numbers``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str


@dataclass(frozen=True)
class BundledCheck:
    """What `check` found of the bundled file; see `CheckResult`.

    Attributes:
        by: the runtime.
        images: of the validation set.
        accuracy: the score of the file; None where the images have no labels.
        converter, precision, agreement: see `CheckedForm`.
        metric: what it is the score by; without labels what `agreement` is by.
        subjects: sha256 of all that `check` saw; see `artifacts.evidence`. Empty in bundles of older versions.
    """

    by: str
    images: int
    accuracy: float | None
    converter: GateResult
    precision: GateResult | None
    agreement: float
    metric: Metric = TOP_1
    subjects: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What the bundle.json in a bundle says.

    Attributes:
        model, target, backend, precision: as in the manifest.
        form: of the network.
        created_by: versions of the packages that made the file.
        file: path of the network in the bundle.
        sha256_of_file: its digest.
        run: the command that runs the self-test.
        time_limit_s: of the self-test's runtime.
        tolerance: of the self-test, of the largest output.
        input: of the file.
        output: of a classifier; of another network the first.
        outputs: all, of a network without classes; empty for a classifier.
        preprocessing: how an image becomes the input.
        golden: inputs and outputs for the self-test.
        checked: what `check` found.
        lineage: what the file was made from.
        facts: what the backend's self-test needs to know besides.
        task: what the network is for; empty where it is not known.
        digest: of the whole bundle; see `deploy.bundle_file.digest`.
        files: all others of the bundle, by path.
    """

    TITLE: ClassVar[str] = "manifest of a bundle"
    STAGE: ClassVar[str] = "bundle"
    SCHEMA: ClassVar[int] = 1

    model: str
    target: str
    backend: str
    form: str
    precision: str
    created_by: Mapping[str, str | None]
    file: str
    sha256_of_file: str
    run: tuple[str, ...]
    time_limit_s: int
    tolerance: float
    input: TensorFacts
    output: BundledOutput
    preprocessing: Preprocessing
    golden: tuple[GoldenCase, ...]
    checked: BundledCheck
    lineage: Lineage
    facts: Mapping[str, Any]
    outputs: tuple[BundledOutput, ...] = ()
    task: str = ""
    digest: str = ""
    files: Mapping[str, FileFacts]


@dataclass(frozen=True)
class BundleResult:
    """What targets/<target>/<model>/bundle.json says.

    Attributes:
        bundle: path of the tar.
        digest: of its content.
        size_bytes: of the tar.
        signature: path of its signature, None where it is not signed.
    """

    TITLE: ClassVar[str] = "note of a bundle"
    STAGE: ClassVar[str] = "bundle"
    SCHEMA: ClassVar[int] = 1

    bundle: str
    digest: str
    size_bytes: int
    signature: str | None
