"""What the rules in workflows/ need: the configuration, the settings of each stage, and digests of code."""

import atexit
import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import backends, exit_codes, lifetime
from pipeline.artifacts import digests, documents, failures
from pipeline.artifacts.bundle_result import BundleResult
from pipeline.artifacts.failures import Failures
from pipeline.config import project, schema, targets, yaml_file
from pipeline.config.stages import ReferenceSettings
from pipeline.deploy import templates
from pipeline.errors import InputError, shown
from pipeline.models import networks, resolve
from pipeline.stages.settings import settings_of

_BUILT = ("artifacts/*/*.*", "targets/*/*/*.*", *(f"targets/*/*/{one}/*.*" for one in targets.PRECISIONS))

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads wait without spinning: with more jobs than cores, ten times faster
    "THP_MEM_ALLOC_ENABLE": "1",  # large tensors in huge pages: else half of a stage at 224 x 224 is page faults
}
"""Environment of every stage, unless the user sets these variables; torch reads them when it is imported."""


def configure(changes: Mapping[str, Any], replace: bool = False) -> project.Config:
    """Read config.yaml, and set the environment of Snakemake's jobs. No file is changed, but locks of runs that were
    killed are released.

    The rules leave config.yaml to this function, since Snakemake's `configfile:` sets no limits on what it reads.

    Args:
        changes: what `--config` and `--configfile` give.
        replace: they are all there is; `--replace-workflow-config`.

    A mistake of the user's ends the process with exit code 2 and one paragraph on stderr.
    """
    # `.venv/bin/snakemake` works without an activated environment
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    lifetime.release_locks_of_dead_runs()
    own = Path("config.yaml")
    is_left_out = replace or (changes and not own.exists())
    try:
        values = schema.merged({} if is_left_out else yaml_file.read(own), changes)
        read = resolve.load(values, backends.rules())
        for name, model in read.models.items():
            path = f"models.{name}.checkpoint: {shown(model.checkpoint)}"
            if model.checkpoint and not Path(model.checkpoint).is_file():
                raise InputError(f"{path} is no file that is there. Correct the path.")
            if model.checkpoint and set(model.checkpoint) & set("{}"):
                raise InputError(
                    f"{path}: Snakemake takes braces in a path for wildcards. Rename the file or its folder."
                )
    except InputError as error:
        print(f"error: {exit_codes.said(error)}", file=sys.stderr)
        raise SystemExit(InputError.exit_code) from None
    return read


def tell_left_out(read: project.Config) -> None:
    """Say which targets are not built, and why."""
    if read.left_out:
        print(
            f"note: {', '.join(read.left_out)} are left out: the ranges of int8 come from pictures, and data.name is "
            "none. A folder of them will do, without labels: `data: {name: pictures, root: FOLDER}`.",
            file=sys.stderr,
        )


def split(workflow: Any) -> Callable[[Any], str]:
    """A function of a job's wildcards: the split, which every model begins with.

    Snakemake calls it while it builds its graph of jobs, before it reads the dates of files. What Snakemake could not
    see itself is entered here into its cache of files; no file is changed.

    Args:
        workflow: Snakemake's.
    """

    def of_job(_wildcards: Any) -> str:
        if workflow.iocache.active:  # until the first job starts
            _note_bundles(workflow.iocache.exists_local)
            _note_dates(workflow.iocache.mtime)
        return "artifacts/split.json"

    return of_job


def _note_bundles(exists: MutableMapping[str, bool]) -> None:
    """A bundle.json that is damaged, or whose bundle was deleted, counts as missing, so that it is made again."""
    for place in Path("targets").glob("*/*/bundle.json"):
        try:
            is_there = os.path.isfile(documents.read(BundleResult, place).bundle)  # False for what is no path
        except InputError:
            is_there = False
        if not is_there:
            exists[place.as_posix()] = False


def _note_dates(dates: MutableMapping[str, Any]) -> None:
    """A file that was replaced by an older one (`cp -p`, rsync) counts as of the replacement where a job reads it.

    Snakemake compares contents only if an input is newer than its output, and a copy can have a date in the past. The
    time of the inode's last change cannot be set, so it is used. But it also changes with modes and names: a job's own
    output keeps its date, or a stale one would look newer than what it was made of. `Mtime` has a second date, that of
    a link's target, which Snakemake looks at where a file is an input. A folder's date is that of a file in it.
    """
    from snakemake_interface_storage_plugins.io import Mtime

    for file in (file for pattern in _BUILT for file in Path().glob(pattern) if file.is_file()):
        status = file.stat()
        if status.st_ctime_ns > status.st_mtime_ns + 1_000_000_000:
            dates[file.as_posix()] = Mtime(local=status.st_mtime, local_target=status.st_ctime)


def settings(
    read: project.Config, stage: str, target: str | None = None, precision: str | None = None
) -> Callable[[Any], str]:
    """A function of a job's wildcards: the settings of its stage, as JSON. They are a parameter of the rule, so the job
    runs again when they change.
    """

    def of_job(wildcards: Any) -> str:
        return settings_of(stage, read, wildcards.get("model"), target, precision).model_dump_json()

    return of_job


@dataclass(frozen=True)
class Exports:
    """Files of one target, or of one candidate of it, that are exported of some models alike.

    Attributes:
        target: its name.
        backend: of the target.
        candidate: the precision, where the target chooses from several; else None.
        forms: of each model: the one that ships, and the baseline where there is one.
        models: names.
    """

    target: str
    backend: str
    candidate: str | None
    forms: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Folder of the files of `{model}`."""
        return "/".join(["targets", self.target, "{model}", *filter(None, [self.candidate])])

    @property
    def logs(self) -> str:
        """Folder of the stages' logs on `{model}`."""
        return "/".join(["logs", "{model}", self.target, *filter(None, [self.candidate])])

    @property
    def files(self) -> list[str]:
        """The files of `{model}`."""
        return [f"{self.folder}/{name}" for name in backends.file_names(self.backend, self.forms)]

    @property
    def inputs(self) -> dict[str, str]:
        """Inputs besides fused.pt2 and the checkpoint, by the stages' names for them."""
        return {"quantized": "artifacts/{model}/quantized.pt2"} if "quantized" in self.forms else {}

    @property
    def name(self) -> str:
        """Of the rules."""
        return "_".join(filter(None, [self.target, self.candidate, *self.forms]))


def exports(read: project.Config) -> list[Exports]:
    """All files that are exported."""
    groups: dict[tuple[str, str, str | None, tuple[str, ...]], list[str]] = {}
    for name in read.targets:
        for target in read.exported(name):
            candidate = target.precision if name in read.candidates else None
            for model in read.models:
                key = (name, target.backend, candidate, resolve.forms(read, target, model))
                groups.setdefault(key, []).append(model)
    return [Exports(*key, tuple(models)) for key, models in groups.items()]


def exported_files(_wildcards: Any, input: Any) -> list[str]:  # Snakemake knows the second one by this name
    """The options of `bundle` for the files that ship. A race's choice is one folder, with its manifest and check."""
    files = [input.files] if isinstance(input.files, str) else list(input.files)
    manifest, check = (input.get(one, f"{files[0]}/{one}.json") for one in ("manifest", "check"))
    return ["--manifest", manifest, "--check", check, "--files", *files]


def races(read: project.Config) -> dict[str, list[Exports]]:
    """The candidates of each target of `precision: auto`; they are the same for every model."""
    made = exports(read)
    return {name: [one for one in made if one.target == name] for name in read.candidates}


def partial_report(read: project.Config, failed: Failures) -> str | None:
    """The command that reports what was built, where something failed; None if no report was wanted, or it failed.

    What a failed job left undone is told as failed, even if an earlier run made it.
    """
    if "report.md" not in failed.unfinished or any(job.stage == "report" for job in failed.jobs):
        return None
    files = documents_of_report(read)
    files["benches"] = [f"targets/{target}/{model}/bench.json" for target in read.targets for model in read.models]
    made = {
        name: [place for place in places if place not in failed.unfinished and os.path.isfile(place)]
        for name, places in (files | {"pictures": pictures(read)}).items()
    }
    for one, other in (("manifests", "checks"), ("checks", "manifests"), ("fuses", "verifies")):
        whole = {os.path.dirname(place) for place in made[other]}
        made[one] = [place for place in made[one] if os.path.dirname(place) in whole]
    words = [word for option, places in made.items() if places for word in (f"--{option}", *places)]
    stage = ["python", "-m", "pipeline", "report", "--settings", "{}", "--failures", str(failures.PLACE)]
    outputs = ["--output", "report.md", "--page", "report.html"]
    return f"{shlex.join([*stage, *words, *outputs])} > logs/report.log 2>&1 && cat report.md && echo report.html"


def priority(read: project.Config, target: str | None = None) -> Callable[[Any], int]:
    """A function of a job's wildcards: its priority.

    The first model comes first, so that its figures are printed while the others are being built; among its targets,
    those that are timed on this machine.
    """
    last = len(read.models)
    rank = {name: 2 * (last - place) for place, name in enumerate(read.models)}

    def of_job(wildcards: Any) -> int:
        return rank[wildcards.model] + (target is not None and is_measured_here(read, target))

    return of_job


def is_measured_here(read: project.Config, target: str) -> bool:
    """Whether a target can be timed: on the device that it names, or on this machine if its runtime is here."""
    one = read.targets[target]
    return one.device != "local" or backends.load(one.backend).unavailable() is None


def references(read: project.Config) -> dict[str, dict[str, ReferenceSettings]]:
    """The reference measurements of each model, for runtimes that are not here, by the names of their files."""
    found: dict[str, dict[str, ReferenceSettings]] = {}
    for target in read.targets:
        for model in read.models:
            settings = _reference(read, target, model)
            if settings and not _same_bench(read, model, settings):
                found.setdefault(model, {})[_reference_name(settings)] = settings
    return found


def measured(references: Mapping[str, Mapping[str, ReferenceSettings]]) -> Callable[[Any], ReferenceSettings]:
    """A function of a job's wildcards: the settings of a reference measurement; see `references`."""
    return lambda wildcards: references[wildcards.model][wildcards.reference]


def reference(read: project.Config, target: str) -> Callable[[Any], list[str]]:
    """A function of a job's wildcards: the file of a target's reference figures; none if its runtime is here.

    If another target is the same measurement, the file is that target's bench.json.
    """

    def of_job(wildcards: Any) -> list[str]:
        model = wildcards.model
        settings = _reference(read, target, model)
        if settings is None:
            return []
        same = _same_bench(read, model, settings)
        return [same or f"artifacts/{model}/{_reference_name(settings)}.json"]

    return of_job


def _reference(read: project.Config, target: str, model: str) -> ReferenceSettings | None:
    """A target's reference measurement; None if its runtime is here, or for a race, which needs its own runtime."""
    if target in read.candidates or is_measured_here(read, target):
        return None
    return settings_of("reference", read, model, target)


def _same_bench(read: project.Config, model: str, settings: ReferenceSettings) -> str | None:
    """The bench.json of a target that is the same measurement: the same forms and runtime, on this machine."""
    for name, one in read.targets.items():
        is_alike = (one.backend, one.precision, one.device) == (
            backends.stand_in(settings.precision).name,
            settings.precision,
            "local",
        )
        if is_alike and is_measured_here(read, name) and settings_of("reference", read, model, name) == settings:
            return f"targets/{name}/{model}/bench.json"
    return None


def _reference_name(settings: ReferenceSettings) -> str:
    digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]
    return f"reference-{settings.precision}-{digest}"


def documents_of_report(read: project.Config) -> dict[str, list[str]]:
    """The documents that the stage `report` reads, by the names of its options."""
    made = [(one, model) for one in exports(read) for model in one.models]
    of_targets = [(target, model) for target in read.targets for model in read.models]
    quantized = [model for model in read.models if any(model == name and one.inputs for one, name in made)]
    return {
        "benches": [f"targets/{target}/bench.json" for target in read.targets],
        "profiles": [f"targets/{target}/{model}/profile.json" for target, model in of_targets],
        "fuses": [f"artifacts/{model}/fuse.json" for model in read.models],
        "verifies": [f"artifacts/{model}/verify.json" for model in read.models],
        "quantizes": [f"artifacts/{model}/quantize.json" for model in quantized],
        "manifests": [f"{one.folder}/manifest.json".format(model=model) for one, model in made],
        "checks": [f"{one.folder}/check.json".format(model=model) for one, model in made],
        "metrics": [f"artifacts/{name}/metrics.jsonl" for name, model in read.models.items() if not model.checkpoint],
    }


def pictures(read: project.Config) -> list[str]:
    """The pictures that were drawn of the models."""
    places = [f"artifacts/{model}/{name}" for model in read.models for name in ("structure.svg", "samples.png")]
    return [place for place in places if os.path.isfile(place)]


def options_of_report(_wildcards: Any, input: Any) -> list[str]:  # Snakemake knows the second one by this name
    """The options of `report` for all that it reads, each by the name of its inputs."""
    given = {name: [files] if isinstance(files, str) else list(files) for name, files in input.items()}
    return [word for name, files in given.items() if files for word in (f"--{name}", *files)]


def tell_report(workflow: Any) -> None:
    """Say where the page is, after all that Snakemake prints itself, if this run was about it."""
    if any("report.html" in map(str, job.output) for job in workflow.dag.jobs):
        atexit.register(print, "report.html", flush=True)


def network(read: project.Config) -> Callable[[Any], str]:
    """A function of a job's wildcards: digest of the code that builds the model's network."""

    def of_job(wildcards: Any) -> str:
        model = read.models[wildcards.model]
        return digests.code_digest(*networks.code_modules(model.arch, resolve.form(model) == "deploy"))

    return of_job


def checkpoint(read: project.Config) -> Callable[[Any], str]:
    """A function of a job's wildcards: the checkpoint that is fused and shipped, recalibrated if that is configured."""

    def of_job(wildcards: Any) -> str:
        name = "recalibrated" if read.models[wildcards.model].recalibrate_bn else "checkpoint"
        return f"artifacts/{wildcards.model}/{name}.safetensors"

    return of_job


def shipped_texts(backend: str) -> str:
    """Digest of the texts and the code that go into bundles of a backend."""
    return hashlib.sha256("".join(map(digests.digest, templates.shipped(backend))).encode()).hexdigest()
