"""What a target may ask of an engine."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import InputError


@dataclass(frozen=True)
class Options:
    """A target's options; what each is for stands in docs/tensorrt.md.

    Attributes:
        compute_capabilities: the GPUs that TensorRT-RTX builds for, e.g. ``"8.9"``; full TensorRT builds
            for the GPU of the machine that it runs on.
        dynamic_batch: ``{"min", "opt", "max"}``, the batches that the engine takes and the one that it is
            tuned for; None: the target's ``batch`` alone.
        timing_cache: file with the measurements of earlier builds, for full TensorRT alone; None: one in
            the store's folder for each GPU and version.
        builder_optimization_level: 0 builds fast, 5 tries most; None: TensorRT's own default.
        workspace_mb: memory that one layer may take while it runs, MiB; None: the whole device's.
        tf32: let float32 layers compute with ten bits of fraction, as TensorRT does by default.
    """

    compute_capabilities: tuple[str, ...] = ("8.6", "8.9", "12.0")
    dynamic_batch: Mapping[str, int] | None = None
    timing_cache: str | None = None
    builder_optimization_level: int | None = None
    workspace_mb: int | None = None
    tf32: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Options":
        """A target's section ``options``; what it leaves out is the default.

        Raises:
            InputError: no compute capability is named.
        """
        options = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        if not options.compute_capabilities:
            raise InputError(
                "`compute_capabilities` is empty, so there is no GPU to build for. Name one, e.g. `['8.9']`."
            )
        return options

    def batches(self) -> tuple[int, int, int] | None:
        """The smallest batch, the one to tune for and the largest; None: the file's own."""
        return tuple(self.dynamic_batch[name] for name in ("min", "opt", "max")) if self.dynamic_batch else None
