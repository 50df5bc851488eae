"""What damaged files did before: each kind is refused in one paragraph, whatever the file."""

import json
import os
import struct
import zipfile
from dataclasses import replace

import pytest

from pipeline.backends.coreml import packages
from pipeline.backends.executorch import pte
from pipeline.backends.executorch.flatbuffer import FlatBuffer
from pipeline.backends.onnx import model_file
from pipeline.data import class_order, image_file, splits
from pipeline.deploy import bundle_file
from pipeline.errors import InputError, reading
from pipeline.exit_codes import said
from pipeline.models import checkpoints, external_checkpoints, program_file
from tests.fixtures.documents import bundle_manifest
from tests.fixtures.onnx_functions import growing

READ = {
    "checkpoint.safetensors": checkpoints.read,
    "other.safetensors": external_checkpoints.read,
    "weights.pth": external_checkpoints.read,
    "keys.pth": external_checkpoints.keys_of,
    "fused.pte": pte.read,
    "fused.onnx": model_file.check,
    "image.png": image_file.read,
    "bundle.tar": bundle_file.open_bundle,
    "classes.json": lambda path: class_order.ordered(["a"], str(path)),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else name)
    with pytest.raises(InputError) as error:
        READ[name](path)
    assert len(str(error.value)) < 1000


def test_openvino_is_given_regular_files_alone(tmp_path):
    pytest.importorskip("openvino")
    from pipeline.backends.openvino import runtime

    (tmp_path / "fused.xml").write_text("<net/>")
    (tmp_path / "fused.bin").symlink_to("fused.bin")  # OpenVINO would end the process
    with pytest.raises(InputError, match="cannot be read by OpenVINO"):
        runtime.signature(tmp_path / "fused.xml")


def table(entries, data=b"\0" * 8):
    written = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(written)) + written + data


def entry(start, end, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        table({"a": entry(0, 8), "b": entry(0, 8)}),
        table({"a": entry(0, 8, (2**40, 2**40))}),
        table({"a": entry(-8, 8)}),
        table({"a": {"dtype": "F32", "shape": [2], "data_offsets": []}}),
        table(b"[" * 100_000),
        table(b"1" * 5000),
    ],
    ids=["overlapping", "too large a shape", "negative", "no offsets", "nested", "digits"],
)
def test_the_table_of_a_checkpoint_is_held_against_its_file(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors is (damaged|not a whole safetensors file)"):
        external_checkpoints.read(path)


def test_a_table_of_a_checkpoint_has_a_limit(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)  # takes no room on the disk
    with pytest.raises(InputError, match="its table of contents has 200,000,000 bytes, and 100,000,000 are the most"):
        checkpoints.read_table(path)


@pytest.mark.parametrize("wrong", [{"labels": [9]}, {"train": [7]}, {"train": [-1]}, {"classes": [None]}])
def test_the_numbers_of_a_split_are_of_its_images(tmp_path, wrong):
    about = {"classes": ["a", "b"], "labels": [0, 1], "train": [0], "val": [1]} | wrong
    parts = {part: about[part] for part in ("train", "val")}
    split = splits.new_split("imagefolder", "x", about["classes"], {"a": "0", "b": "1"}, about["labels"], parts)
    splits.write_split(tmp_path / "split.json", split)
    with pytest.raises(InputError, match="is not a split"):
        splits.open_split(tmp_path / "split.json")


def test_lists_that_share_their_parts_are_not_walked_without_end():
    """A table whose list names that table itself, over and over."""
    elements = 500
    vtable = struct.pack("<HHH", 6, 8, 4)
    content = bytearray(struct.pack("<I", 12) + vtable + b"\0\0" + struct.pack("<iII", 8, 4, elements))
    for at in range(elements):
        content += struct.pack("<I", (12 - (24 + 4 * at)) % 2**32)

    def walk(data, table, depth):
        for _ in data.tables(table, 0):
            if depth:
                walk(data, table, depth - 1)

    data = FlatBuffer(bytes(content))
    with pytest.raises(IndexError, match="its lists share their parts"):
        walk(data, data.root(), 5)
    assert data.steps <= 2 * len(content)


def onnx_file(path, change):
    from onnx import TensorProto, helper

    inner = helper.make_graph([helper.make_node("Identity", ["y"], ["z"])], "inner", [], [])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "main", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    change(model, inner)
    path.write_bytes(model.SerializeToString())
    return path


def test_graphs_within_graphs_of_onnx_are_refused(tmp_path):
    """Also within a function, called or not."""
    from onnx import helper

    def branch(inner):
        inner.node[0].input[0] = "x"
        inner.output.append(helper.make_tensor_value_info("z", 1, [1]))
        return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)

    def in_function(model, inner):
        model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [branch(inner)], model.opset_import))

    assert model_file.check(onnx_file(tmp_path / "plain.onnx", lambda model, inner: None))
    for change in (lambda model, inner: model.graph.node[0].CopyFrom(branch(inner)), in_function):
        with pytest.raises(InputError, match="the operation If, which runs a graph of its own"):
            model_file.check(onnx_file(tmp_path / "if.onnx", change))


@pytest.mark.parametrize("levels, calls", [(2, 400), (25, 2), (40, 2), (60, 1)])
def test_functions_of_onnx_that_grow_are_refused(tmp_path, levels, calls):
    file = onnx_file(tmp_path / "f.onnx", lambda model, inner: growing(model, levels, calls))
    with pytest.raises(InputError, match=r"f\.onnx has functions that .* which no network has"):
        model_file.check(file)


def test_functions_of_onnx_that_call_each_other_too_deep_are_refused_in_any_order(tmp_path):
    """Where the last ones are called first, each call alone is not deep."""
    from onnx import helper

    def change(model, inner):
        growing(model, 90, 1)
        calls = [helper.make_node(f"f{89 - 30 * n}", ["x"], [f"y{n}"], domain="own") for n in range(3)]
        nodes = [*calls, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    with pytest.raises(InputError, match=r"f\.onnx has functions that .* which no network has"):
        model_file.check(onnx_file(tmp_path / "f.onnx", change))


def test_a_function_of_onnx_that_calls_itself_is_refused(tmp_path):
    def circle(model, inner):
        growing(model, 2, 1)
        model.functions[1].node[0].op_type, model.functions[1].node[0].domain = "f0", "own"

    with pytest.raises(InputError, match=r"f\.onnx (has functions|does not hold a valid ONNX model)"):
        model_file.check(onnx_file(tmp_path / "f.onnx", circle))


def test_functions_of_onnx_that_do_not_grow_are_written_out(tmp_path):
    plain = model_file.check(onnx_file(tmp_path / "f.onnx", lambda model, inner: growing(model, 10, 2)))
    assert [node.op_type for node in plain.graph.node] == ["Relu"] * 1024 and not plain.functions


def test_a_file_that_gives_one_number_has_no_classes(tmp_path):
    from pipeline.cli import exported_files

    def without_axes(model, inner):
        del model.graph.output[0].type.tensor_type.shape.dim[:]

    file = onnx_file(tmp_path / "a.onnx", without_axes)
    assert exported_files.open_file(file).classes is None


@pytest.mark.parametrize("place", ["/etc/passwd", "../../secret", "com.apple.CoreML/../../../secret"])
def test_a_manifest_of_core_ml_leads_nowhere_else(tmp_path, place):
    (tmp_path / "Data").mkdir()
    manifest = {"itemInfoEntries": {"a": {"path": place}}, "rootModelIdentifier": "a"}
    (tmp_path / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="in its Manifest leads out of it"):
        packages.open_package(tmp_path)


def test_a_package_of_core_ml_holds_no_links(tmp_path):
    (tmp_path / "Data").symlink_to("/etc")
    (tmp_path / "Manifest.json").write_text("{}")
    with pytest.raises(InputError, match="Data is no regular file"):
        packages.open_package(tmp_path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("run", ["rm", "-rf", "/"]),
        ("run", []),
        ("file", "../outside"),
        ("file", "missing.pte"),
        ("file", "."),
        ("time_limit_s", -1),
        ("golden", [{"input": "../x", "output": "labels.txt", "labels": [0]}]),
    ],
)
def test_fields_of_a_bundle_that_cannot_be_are_refused(tmp_path, field, value):
    tar = bundle_file.write(tmp_path, {"fused.pte": b"1", "labels.txt": b""}, bundle_manifest(**{field: value}))
    with pytest.raises(InputError, match=f"`{field}` in bundle.json"):
        bundle_file.open_bundle(tar)


def test_a_tolerance_that_is_no_number_is_refused(tmp_path):
    with pytest.raises((InputError, ValueError)):
        bundle_file.write(tmp_path, {"fused.pte": b"1"}, replace(bundle_manifest(), tolerance=float("nan")))


def test_what_a_parser_says_is_one_line_that_a_terminal_can_show():
    with pytest.raises(InputError) as error, reading("fused.pte"):
        raise KeyError("\x1b[31m" + "x" * 5000 + "\nmore")
    assert len(str(error.value)) < 400 and str(error.value).isprintable()
    assert said(InputError("a\x1bb\nc")) == "a\\x1bb\nc"


def test_half_a_surrogate_pair_in_a_header_is_refused(tmp_path):
    header = json.dumps({"__metadata__": {checkpoints._KEY: "\ud800"}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match="the header in"):
        checkpoints.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("read", [external_checkpoints.read, program_file.read])
def test_an_archive_of_several_disks_is_refused(tmp_path, read):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x")
    end = path.read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 3, 0, 7)
    path.write_bytes(end[:-22] + locator + end[-22:])
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(path)
    with pytest.raises(InputError):
        read(path)
