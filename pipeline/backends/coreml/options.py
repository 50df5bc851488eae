"""The options of a Core ML target in target.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.backend_rules import BackendRules
from pipeline.config.schema import Strict


class Options(Strict):
    """The oldest system to run on, what goes into the package besides the network, and where bench runs it."""

    minimum_deployment_target: Literal["iOS15", "iOS16", "iOS17", "iOS18"] = Field(
        "iOS16", description="or, where the precision needs a later one, that"
    )
    class_labels: bool = Field(False, description="a classifier: softmax, class label and probabilities come out")
    normalization: bool = Field(False, description="takes an image of 0..255; mean and std are in the package")
    compute_units: Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"] = Field(
        "ALL", description="that Core ML may use where the package is run; NE is the Neural Engine"
    )
    device: Literal["mac", "iphone"] = Field("mac", description="that bench times: this Mac, or the iPhone connected")
    development_team: str | None = Field(None, description="of an Apple Developer account; signs the iPhone's runner")

    @model_validator(mode="after")
    def _iphone_can_be_reached(self) -> "Options":
        if self.device == "iphone" and not self.development_team:
            raise ValueError(
                "device: iphone needs development_team, the ten characters that Xcode signs an app for the phone with"
            )
        if self.device == "iphone" and self.normalization:
            raise ValueError(
                "device: iphone needs normalization: false; coremltools sends an iPhone arrays of numbers, no images"
            )
        return self


OLDEST_SYSTEM = {"int8": "iOS17", "w8": "iOS16", "w4": "iOS18", "palette6": "iOS16"}
"""Which Core ML reads these precisions at all."""

RULES = BackendRules(
    title="Core ML",
    precisions=("int8", "fp16", "fp32", "w8", "w4", "palette6"),
    candidates=("fp16", "int8", "w8", "w4", "palette6"),
    options=Options,
    at_least={precision: ("minimum_deployment_target", system) for precision, system in OLDEST_SYSTEM.items()},
    float_of_baseline="fp16",
    not_on_devices="Core ML is timed on a Mac by running the project there, and on an iPhone beside it, not over "
    "{device}. Leave `device:` out; docs/core-ml-on-a-mac.md tells more.",
)
