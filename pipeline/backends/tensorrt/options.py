"""The options of a TensorRT target in target.yaml; docs/tensorrt.md describes them."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from pipeline.config.backend_rules import BackendRules
from pipeline.config.schema import Strict
from pipeline.errors import InputError


class DynamicBatch(Strict):
    """The batches that an engine takes, and the one that it is tuned for."""

    min: int = Field(1, ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=2)

    @model_validator(mode="after")
    def _in_order(self) -> "DynamicBatch":
        if not self.min <= self.opt <= self.max or self.min == self.max:
            raise ValueError(
                f"dynamic_batch needs min <= opt <= max and min < max, not {self.min}, {self.opt}, {self.max}"
            )
        return self


class Options(Strict):
    """How engines are built."""

    compute_capabilities: tuple[str, ...] = Field(
        ("8.6", "8.9", "12.0"), description="GPUs that TensorRT-RTX builds for where full TensorRT is not installed"
    )
    dynamic_batch: DynamicBatch | None = Field(None, description="min, opt, max; default: `batch` alone")
    timing_cache: str | None = Field(
        None, description="file with the measurements of earlier builds; default: one in the store's folder"
    )
    builder_optimization_level: int | None = Field(None, ge=0, le=5, description="default: TensorRT's own, 3")
    workspace_mb: int | None = Field(None, ge=1, description="memory that one layer may take, MiB; default: all")
    tf32: bool = Field(False, description="fp32 layers may compute with ten bits of fraction")

    @model_validator(mode="after")
    def _names_a_gpu(self) -> "Options":
        if not self.compute_capabilities:
            raise ValueError(
                "`compute_capabilities` is empty, so there is no GPU to build for. Name one, e.g. `['8.9']`."
            )
        return self

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Options":
        """A target's section ``options``; what it leaves out is the default, and other keys are not read.

        Raises:
            InputError: a value cannot be used.
        """
        try:
            return cls.model_validate({name: values[name] for name in cls.model_fields if name in values})
        except ValidationError as error:
            raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    @classmethod
    def of_one_batch(cls, batch: int) -> "Options":
        """For a file whose batch is open, an engine that takes this batch alone."""
        bounds = DynamicBatch.model_construct(min=batch, opt=batch, max=batch)  # of one batch: no bounds of a user's
        return cls.model_construct(dynamic_batch=bounds)

    def batches(self) -> tuple[int, int, int] | None:
        """The smallest batch, the one to tune for and the largest; None: the file's own."""
        return (self.dynamic_batch.min, self.dynamic_batch.opt, self.dynamic_batch.max) if self.dynamic_batch else None


RULES = BackendRules(
    title="TensorRT",
    precisions=("int8", "fp16", "fp32"),
    candidates=("fp32", "fp16", "int8"),
    options=Options,
    float_of_baseline="fp16",
)
