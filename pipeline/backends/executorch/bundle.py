"""The parts of a bundle that are specific to ExecuTorch, and the folders for an app's project."""

from pathlib import Path

from pipeline.backends.base import XCODE_STEPS, AppLayout, BundleParts

BUNDLE = BundleParts(
    folder=Path(__file__).with_name("shipped"),
    needs="ExecuTorch's Python package (`pip install executorch torch`)",
    files={
        "predict.py": "predict.py",
        "integration/classifier.cpp": "classifier.cpp",
        "integration/Classifier.kt": "Classifier.kt",
        "integration/Classifier.swift": "Classifier.swift",
    },
    app=AppLayout(
        {
            "@FILE@": "android/assets xcode",
            "labels.txt": "android/assets xcode",
            "integration/Classifier.kt": "android",
            "integration/Classifier.swift": "xcode",
        },
        f"""\
Android: copy {{folder}}/android/assets into src/main of the app's module, and Classifier.kt beside your own code;
       build.gradle.kts takes implementation("org.pytorch:executorch-android:VERSION"), see bundle/README.md.
{XCODE_STEPS}
       Add ExecuTorch's Swift package, see bundle/README.md.
A new version later: lay it out again, and replace the files in the project.""",
    ),
)
