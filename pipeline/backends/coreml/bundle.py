"""The parts of a bundle that are specific to Core ML, and the folders for an app's project."""

from pathlib import Path

from pipeline.backends.base import XCODE_STEPS, AppLayout, BundleParts

BUNDLE = BundleParts(
    folder=Path(__file__).with_name("shipped"),
    needs="coremltools on a Mac (`pip install coremltools`)",
    files={"predict.py": "predict.py", "integration/Classifier.swift": "Classifier.swift"},
    files_for_pixels={"integration/Classifier.swift": "image_classifier.swift"},
    app=AppLayout(
        {"@FILE@": "xcode", "labels.txt": "xcode", "integration/Classifier.swift": "xcode"},
        f"""\
{XCODE_STEPS}
       Xcode compiles {{file}} to {{stem}}.mlmodelc, which Classifier.swift opens.
A new version later: lay it out again, and replace the files in the project.""",
    ),
)
