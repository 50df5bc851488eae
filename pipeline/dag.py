"""What the rules in workflows/ ask for: the configuration, what each stage is told, and digests of code."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import config, networks, store
from pipeline.errors import InputError


def configure(values: Mapping[str, Any]) -> config.Config:
    """Validate the configuration that Snakemake read, and make ready what its jobs rely on.

    A mistake of the user's ends the process with exit code 2 and one paragraph on stderr.
    """
    # `.venv/bin/snakemake` works without an activated environment
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    # threads wait for each other without spinning: with more jobs than cores, that is ten times faster
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        read = config.load(values)
        for name, model in read.models.items():
            if model.checkpoint and not Path(model.checkpoint).is_file():
                raise InputError(f"models.{name}.checkpoint: there is no file {model.checkpoint}; correct the path.")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(InputError.exit_code) from None
    store.bring_dates_up([*Path("artifacts").glob("*/*.*"), *Path("targets").glob("*/*/*.*")])
    return read


def settings(read: config.Config, stage: str, target: str | None = None) -> Callable[[Any], str]:
    """A function of a job's wildcards: what its stage is told, as JSON.

    A rule runs again when that changes, and only then.
    """

    def of_job(wildcards: Any) -> str:
        return config.settings_of(stage, read, wildcards.get("model"), target).model_dump_json()

    return of_job


def exports(read: config.Config) -> list[tuple[str, tuple[str, ...], list[str]]]:
    """Each target with the forms that it exports, and the models of which it exports those."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for target in read.targets:
        for model in read.models:
            groups.setdefault((target, read.forms(target, model)), []).append(model)
    return [(*key, models) for key, models in groups.items()]


def network(read: config.Config) -> Callable[[Any], str]:
    """A function of a job's wildcards: digest of the code that builds the model's network."""

    def of_job(wildcards: Any) -> str:
        model = read.models[wildcards.model]
        return store.code_digest(*networks.code_modules(model.arch, model.form == "deploy"))

    return of_job


def checkpoint(read: config.Config) -> Callable[[Any], str]:
    """A function of a job's wildcards: the checkpoint that is fused and shipped, recalibrated where that is wanted."""

    def of_job(wildcards: Any) -> str:
        name = "recalibrated" if read.models[wildcards.model].recalibrate_bn else "checkpoint"
        return f"artifacts/{wildcards.model}/{name}.safetensors"

    return of_job
