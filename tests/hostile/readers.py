"""The readers of files from elsewhere: what each does with a damaged sample, and the errors that it may end in."""

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DeviceError, GateError, InputError, StageError
from tests.hostile import mutations, seeds


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        read: reads the files in a folder, a changed copy of one sample.
        refuses: what it may raise.
        ci: mutations in a run of the tests.
    """

    read: Callable[[Path], None]
    refuses: tuple[type[Exception], ...] = (InputError,)
    ci: int = 200


def _checkpoint(folder: Path) -> None:
    from pipeline.models import checkpoints, external_checkpoints

    path = folder / "checkpoint.safetensors"
    external_checkpoints.form_of(path, "repvgg_a0")
    with suppress(InputError):
        external_checkpoints.read(path)
    checkpoints.load_model(path)


def _pickle(folder: Path) -> None:
    from pipeline.models import external_checkpoints

    (path,) = folder.glob("weights.*")
    external_checkpoints.form_of(path, "repvgg_a0")
    state, _, _ = external_checkpoints.read(path)
    external_checkpoints.as_ours(state, "repvgg_a0", str(path))


def _pt2(folder: Path) -> None:
    from pipeline.models import program_file

    path = folder / "fused.pt2"
    with suppress(InputError):
        program_file.read_lineage(path)
    _exported(path)


def _exported(path: Path) -> None:
    from pipeline import backends
    from pipeline.cli import exported_files

    file = exported_files.open_file(path)
    backends.load(file.backend).census(path)


def _coreml(folder: Path) -> None:
    from pipeline.backends.coreml import evaluator, packages, sessions
    from tests.fixtures.small_networks import CLASSES, SHAPE, ExportSpec, Preprocessing

    path = folder / "fused.mlpackage"
    _exported(path)
    spec = ExportSpec("fp32", SHAPE, Preprocessing(16, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), CLASSES))
    with suppress(GateError):  # it says that the preprocessing is another
        packages.inspect([path], {}, spec)
    with suppress(StageError):  # an operation that the evaluator does not know
        sessions.open_session(path, 1, exact=True)
        evaluator.load(path)


def _document(folder: Path) -> None:
    from pipeline.artifacts import documents
    from pipeline.data import splits

    (path,) = folder.iterdir()
    if path.stem == "split":
        splits.open_split(path)
    else:
        documents.read(seeds.KINDS[path.stem], path)


def _image(folder: Path) -> None:
    from pipeline.data import image_file

    (path,) = folder.iterdir()
    image_file.inspect(path)


def _bundle(folder: Path) -> None:
    from pipeline.deploy import bundle_file

    (path,) = folder.iterdir()
    bundle = bundle_file.open_bundle(path)
    bundle.unpack(folder / "unpacked")


def _classes(folder: Path) -> None:
    from pipeline.data import class_order

    class_order.ordered(seeds.CLASSES, str(folder / "classes.json"))


def _device(folder: Path) -> None:
    """The files stand for what a device prints: an ssh that prints them is called in place of the real one."""
    import os

    from pipeline import devices
    from pipeline.backends.worker import remote
    from pipeline.backends.worker.process import opened
    from pipeline.deploy import installation
    from pipeline.devices import facts

    (path,) = folder.iterdir()
    ssh, content = folder / "ssh", shlex.quote(str(path))
    ssh.write_text(f"#!/bin/sh\ncat {content}\necho '{{\"cpu_seconds\": 1}}'\n")
    ssh.chmod(0o755)
    os.environ["REPNETS_SSH"] = shlex.quote(str(ssh))
    device = devices.parse("ssh://board")
    if path.stem == "facts":
        facts.machine(device)
        facts.moment(device)
        facts.inventory(device, "/home", "python3")
    elif path.stem == "state":
        device.__dict__["home"] = "/home/pi"
        installation.look(device)
    else:
        process_on = remote.Remote(device, "/place", {}, ("serve",), {})
        with opened("executorch", 1, on=process_on) as process:
            process.ask(path.stem, runs=3)


READERS = {
    "checkpoint": Reader(_checkpoint),
    "pickle": Reader(_pickle),
    "pt2": Reader(_pt2),
    "documents": Reader(_document),
    "image": Reader(_image),
    "executorch": Reader(lambda folder: _exported(folder / "fused.pte")),
    "onnx": Reader(lambda folder: _exported(folder / "fused.onnx")),
    "openvino": Reader(lambda folder: _exported(folder / "fused.xml")),
    "coreml": Reader(_coreml),
    "bundle": Reader(_bundle),
    "classes": Reader(_classes),
    "device": Reader(_device, (DeviceError, StageError)),
}
"""By the name of the folder of their samples."""


def mutation_of(path: Path) -> mutations.Mutation:
    """What fits a file, by its suffix."""

    def onnx():
        import onnx

        return onnx.ModelProto()

    def coreml():
        from pipeline.backends.coreml import library

        return library.load_messages().Model_pb2.Model()

    return {
        ".safetensors": mutations.safetensors,
        ".pth": mutations.archive,
        ".pt2": mutations.archive,
        ".json": mutations.tree,
        ".png": mutations.png,
        ".pte": mutations.words,
        ".onnx": mutations.message(onnx),
        ".mlmodel": mutations.message(coreml),
        ".xml": mutations.xml,
        ".tar": mutations.bundle,
        ".txt": mutations.text,
    }.get(path.suffix, mutations.raw)
