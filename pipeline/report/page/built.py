"""The documents that the page is made of, as their types."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.bench_result import BenchResult
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.failures import Failures
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.metric import NONE, Metric
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.artifacts.training_metrics import Epoch
from pipeline.artifacts.verify_result import VerifyResult


@dataclass(frozen=True)
class Model:
    """What is known of one network.

    Attributes:
        fuse, verify: of fusing.
        quantize: None where no target is of int8.
        epochs: of its training; none if it came from a checkpoint.
        structure: picture of the network before and after; None if it was not drawn.
        samples: picture of its outputs; None if it was not drawn.
    """

    fuse: FuseResult
    verify: VerifyResult
    quantize: QuantizeResult | None = None
    epochs: Sequence[Epoch] = ()
    structure: Path | None = None
    samples: Path | None = None


@dataclass(frozen=True)
class Exported:
    """The files of one network for one target in one precision.

    Attributes:
        manifest, check: of the files.
        bench: of the target; None for a candidate of `precision: auto` that was not chosen.
    """

    manifest: Manifest
    check: CheckResult
    bench: BenchResult | None

    @property
    def label(self) -> str:
        """The target; with the precision where it chose among several."""
        is_one_of_several = self.bench is None or self.bench.tried
        return f"{self.manifest.target} {self.manifest.precision}" if is_one_of_several else self.manifest.target

    @property
    def metric(self) -> Metric:
        """Of the task."""
        return self.check.accuracy.metric

    def score(self, form: str) -> float | None:
        """Of the file of one form; None of generated images, which tell nothing."""
        return None if self.metric == NONE else self.check.forms[form].accuracy

    def size_bytes(self, form: str) -> int:
        """Of all files of one form."""
        return sum(file.size_bytes for file in self.manifest.forms[form].files.values())


@dataclass(frozen=True)
class Built:
    """Everything.

    Attributes:
        results: a benchmark for each model and target, in the order of the rows.
        profiles: likewise.
        models: by name.
        exports: in the order of the results.
        failed: the jobs that failed; None if none did.
    """

    results: Sequence[BenchResult]
    profiles: Sequence[ProfileResult]
    models: Mapping[str, Model]
    exports: Sequence[Exported]
    failed: Failures | None = None

    def of(self, model: str) -> Iterator[Exported]:
        """The files of one model."""
        return (one for one in self.exports if one.manifest.model == model)
