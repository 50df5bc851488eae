"""What a bundle says to those who use it: texts and code from pipeline/deploy/shipped/, made for one network.

Python files are shipped as they are: they read bundle.json. In the others `@NAME@` stands for a fact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHIPPED = Path(__file__).with_name("shipped")


@dataclass(frozen=True)
class _Backend:
    """What is shipped for a backend.

    Attributes:
        runtime, needs: what runs its files, and what the self-test asks for beside Python.
        files: by the path in the bundle, the name in pipeline/deploy/shipped/.
        time_limit_s: of the self-test's runtime. trtexec builds an engine first, which takes minutes on a Jetson.
    """

    runtime: str
    needs: str
    files: Mapping[str, str]
    time_limit_s: int


_ALL = {"selftest.py": "selftest.py", "integration/classify.py": "classify.py"}
_BACKENDS = {
    "executorch": _Backend(
        "ExecuTorch",
        "ExecuTorch's Python package (`pip install executorch torch`)",
        {
            "predict.py": "executorch.py",
            "integration/classifier.cpp": "executorch.cpp",
            "integration/Classifier.kt": "executorch.kt",
            "integration/Classifier.swift": "executorch.swift",
        },
        300,
    ),
    "coreml": _Backend(
        "Core ML",
        "coremltools on a Mac (`pip install coremltools`)",
        {"predict.py": "coreml.py", "integration/Classifier.swift": "coreml.swift"},
        300,
    ),
    "tensorrt": _Backend(
        "TensorRT",
        "`trtexec`, which a Jetson has with JetPack",
        {"predict.py": "tensorrt.py", "integration/classifier.cpp": "tensorrt.cpp"},
        1800,
    ),
}

_PURPOSES = {
    "bundle.json": "what all of this is: input, output, preprocessing, lineage, sha256 of each file",
    "selftest.py": "does it work on this device?",
    "predict.py": "runs the network; the self-test uses it, and so can you",
    "labels.txt": "the classes, one a line, in the order of the outputs",
    "preprocessing.txt": "how an image becomes the input",
    "build_engine.sh": "builds the engine for this device's GPU, and times it",
    "golden/": "inputs from real validation images and their outputs: raw little-endian numbers",
    "integration/": "code to start from, made for this network",
}


def shipped(backend: str) -> list[Path]:
    """The files that `texts` reads for a backend."""
    names = {*_ALL.values(), *_BACKENDS[backend].files.values(), "README.md", f"{backend}.md", "preprocessing.txt"}
    names |= {"coreml_image.swift"} if backend == "coreml" else set()
    return [_SHIPPED / name for name in sorted(names)]


def time_limit_s(backend: str) -> int:
    """How long the self-test waits for the runtime by default, seconds."""
    return _BACKENDS[backend].time_limit_s


def texts(document: Mapping[str, Any], members: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, bytes]:
    """README, preprocessing, self-test and code for one network, by their paths in its bundle.

    Args:
        document: bundle.json, without its digests.
        members: the other files of the bundle, by path.
        facts: manifest.json's, of the form that ships.
    """
    about = _BACKENDS[document["backend"]]
    files = {**_ALL, **about.files}
    takes_pixels = document["input"]["dtype"] == "uint8"
    if takes_pixels:
        files["integration/Classifier.swift"] = "coreml_image.swift"
    names = _names(document, about, facts, takes_pixels)
    made = {path: _filled(name, names) for path, name in files.items()}
    made["preprocessing.txt"] = _filled("preprocessing.txt", names)
    names |= {"FILES": _table([*members, *made], document), "USE": _filled(f"{document['backend']}.md", names).strip()}
    made["README.md"] = _filled("README.md", names)
    return {path: text.encode() for path, text in made.items()}


def _names(
    document: Mapping[str, Any], about: _Backend, facts: Mapping[str, Any], takes_pixels: bool
) -> dict[str, str]:
    how, checked = document["preprocessing"], document["checked"]
    accuracy = checked["accuracy"]
    mean, std = (", ".join(map(str, how[key])) for key in ("mean", "std"))
    batch = document["input"]["shape"][0]
    normalize = f"Divide by 255; subtract the mean ({mean}) and divide by ({std}), of R, G, B."
    order = f"planar, {batch} x R, G, B x rows x columns, float32"
    if takes_pixels:
        normalize, order = "Leave the pixels as they are: mean and std are in the package.", "an image of 8-bit pixels"
    return {
        "MODEL": document["model"],
        "TARGET": document["target"],
        "PRECISION": document["precision"],
        "RUNTIME": about.runtime,
        "NEEDS": about.needs,
        "FILE": document["file"],
        "STEM": Path(document["file"]).stem,
        "INPUT": document["input"]["name"],
        "OUTPUT": document["output"]["name"],
        "KIND": document["output"]["kind"],
        "BATCH": str(batch),
        "SIZE": str(how["image_size"]),
        "CLASSES": str(len(how["classes"])),
        "MEAN": mean,
        "STD": std,
        "COLOR": how["color_order"],
        "INTERPOLATION": how["interpolation"],
        "NORMALIZE": normalize,
        "ORDER": order,
        "ACCURACY": "not measured here" if accuracy is None else f"{accuracy:.2%}",
        "IMAGES": str(checked["images"]),
        "CHECKED_BY": checked["by"] or "nothing that was at hand",
        "DIGEST": document["sha256_of_file"][:12],
        "EXECUTORCH": str(document["created_by"].get("executorch")),
        "OLDEST": str(facts.get("minimum_deployment_target")),
    }


def _filled(name: str, names: Mapping[str, str]) -> str:
    text = (_SHIPPED / name).read_text()
    if not name.endswith(".py"):
        for key, value in names.items():
            text = text.replace(f"@{key}@", value)
    return text


def _table(paths: list[str], document: Mapping[str, Any]) -> str:
    """A line for each file or folder at the top of a bundle, as Markdown."""
    network = document["file"]
    purposes = {
        **_PURPOSES,
        network: "the network",
        f"{network}/": "the network",
        f"{Path(network).stem}.engine": "an engine, for devices of the very kind that built it",
    }
    tops = {f"{top}/" if rest else top for top, _, rest in (path.partition("/") for path in ["bundle.json", *paths])}
    return "\n".join(f"| {top} | {purposes.get(top, 'what an earlier build measured')} |" for top in sorted(tops))
