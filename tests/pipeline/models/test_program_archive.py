"""A .pt2 of a stranger runs nothing: each way by which torch would run what is in it is refused before that."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn
from torch.export import Dim

from pipeline.errors import InputError
from pipeline.models import program_archive, program_file

GRAPH, WEIGHTS, CONSTANTS, SAMPLE = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
    "data/sample_inputs/model.pt",
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.ones(4, 1, 1), persistent=False)

    def forward(self, x):
        with torch.no_grad():
            y = self.conv(x)
        return {"map": y * self.scale, "mean": (y.mean(), [nn.functional.interpolate(y, scale_factor=2)])}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, bytes]:
    """The parts of an ordinary file of torch.export.save, by their names without the folder."""
    file = tmp_path_factory.mktemp("good") / "good.pt2"
    free = ({0: Dim("n", min=2), 2: Dim("h", min=8, max=99), 3: Dim.AUTO},)
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=free), file)
    with zipfile.ZipFile(file) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def refused(parts, tmp_path):
    """Write a file with these parts instead, and give the message with which it is refused."""

    def refused(changed: dict[str, bytes], beside: dict[str, bytes] | None = None) -> str:
        file = tmp_path / "evil.pt2"
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in (parts | changed).items():
                archive.writestr(f"good/{name}", content)
            for name, content in (beside or {}).items():
                archive.writestr(name, content)
        with pytest.raises(InputError) as caught:
            program_file.read(file)[0].module()
        assert not (tmp_path / "witness").exists()
        assert len(str(caught.value)) < 2000
        return str(caught.value)

    return refused


@pytest.fixture
def code(tmp_path):
    """Python that writes a file, and an object whose pickle does."""
    call = f"__import__('os').system('touch {tmp_path / 'witness'}')"

    class Boom:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'witness'}",))

    return call, Boom()


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def edited(content: bytes, *change) -> bytes:
    """JSON in which the value at a place, given by keys and numbers, is another."""
    document = json.loads(content)
    *place, last, value = change
    at = document
    for key in place:
        at = at[key]
    at[last] = value
    return json.dumps(document).encode()


def renamed(content: bytes, old: str, new: str) -> bytes:
    quoted = json.dumps(old).encode()
    assert quoted in content
    return content.replace(quoted, json.dumps(new).encode())


def test_an_ordinary_file_is_read(parts, tmp_path):
    with zipfile.ZipFile(tmp_path / "good.pt2", "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"good/{name}", content)
    network = program_file.read(tmp_path / "good.pt2")[0].module()
    assert network(torch.zeros(3, 3, 20, 24))["map"].shape == (3, 4, 18, 22)


@pytest.mark.parametrize(
    "where", ["weights", "constants", "opaque", "script", "sample", "old weights", "old constants"]
)
def test_pickles_do_not_run(where, refused, parts, code):
    boom = code[1]
    if where == "weights":
        entry = json.loads(parts[WEIGHTS])["config"]["conv.weight"] | {"use_pickle": True}
        changed = {
            WEIGHTS: edited(parts[WEIGHTS], "config", "conv.weight", entry),
            "data/weights/weight_0": saved(boom),
        }
    elif where in ("constants", "opaque", "script"):
        path = {"constants": "tensor_9", "opaque": "opaque_obj_9", "script": "custom_obj_9"}[where]
        entry = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}
        content = pickle.dumps(boom) if where == "opaque" else saved(boom)
        changed = {CONSTANTS: edited(parts[CONSTANTS], "config", "evil", entry), f"data/constants/{path}": content}
    elif where == "sample":
        changed = {SAMPLE: saved(((boom,), {}))}
    else:
        changed = {f"data/{where.removeprefix('old ')}/model.pt": saved(boom)}
    assert "nothing of it was run" in refused(changed)


def test_a_program_of_an_old_kind_beside_the_archive_is_not_read(refused, code):
    """torch reads that where it fails on the archive."""
    old = {"version": b"8.0", "serialized_state_dict.pt": saved(code[1]), "serialized_exported_program.json": b"{}"}
    assert "file in archive is not in a subdirectory" in refused({"archive_version": b"9"}, old)


def test_what_python_sees_in_the_archive_lies_in_one_folder_too():
    """Of a zip with two tables of contents, torch's reader may see the one, and Python's, which torch falls back on,
    the other."""
    with pytest.raises(program_archive.UnsafeError, match="beside its one folder"):
        program_archive.require_one_folder(["good/archive_format", "version"])


@pytest.mark.parametrize("place", ["size", "guard", "guard's quotes", "range", "power", "tower"])
def test_sizes_are_arithmetic(place, refused, parts, code):
    size = {"power": "9**9**9", "tower": "Pow(Pow(Integer(9), Integer(4)), Integer(4))"}.get(place, code[0])
    if place.startswith("guard"):
        size = f"""L['x" if {code[0]} else "'].size()[0] == 2""" if "quotes" in place else size
        graph = edited(parts[GRAPH], "guards_code", [size])
    elif place == "range":
        graph = edited(parts[GRAPH], "range_constraints", size, {"min_val": 1, "max_val": 9})
    else:
        document = json.loads(parts[GRAPH])
        tensor = document["graph_module"]["graph"]["tensor_values"]["x"]
        tensor["sizes"][0]["as_expr"]["expr_str"] = size
        graph = json.dumps(document).encode()
    assert "no plain arithmetic" in refused({GRAPH: graph})


def test_a_symbol_of_a_large_number_takes_no_time(refused, parts):
    """torch counts up to the number of a symbol."""
    graph = edited(parts[GRAPH], "range_constraints", "u99999999999999", {"min_val": 1, "max_val": 9})
    assert "no plain arithmetic" in refused({GRAPH: graph})


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten._unsafe_index.Tensor",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.higher_order.while_loop",
        "torch.hub.load",
        "torch.os.system",
        "_operator.methodcaller",
        "_operator.pow",
        "math.factorial",
        "#evil:any",
        "builtins.eval",
    ],
)
def test_operators_compute_and_do_nothing_else(target, refused, parts):
    graph = renamed(parts[GRAPH], "torch.ops.aten.mul.Tensor", target)
    assert "no operator of a network" in refused({GRAPH: graph})


def test_names_are_no_code(refused, parts, code):
    """torch writes names of inputs and values into a function."""
    assert "no identifier" in refused({GRAPH: renamed(parts[GRAPH], "x", f"x={code[0]}")})


def test_names_of_weights_do_not_leave_their_quotes(refused, parts, code):
    evil = f'conv.0"), {code[0]}, ("'
    changed = {place: renamed(parts[place], "conv.weight", evil) for place in (GRAPH, WEIGHTS)}
    assert "has the name" in refused(changed)


def test_how_inputs_nest_imports_nothing(refused, parts):
    tree = json.dumps(
        [
            1,
            {
                "type": "collections.defaultdict",
                "context": {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []},
                "children_spec": [],
            },
        ]
    )
    document = json.loads(parts[GRAPH])
    document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = tree
    assert "tuples, lists or dicts" in refused({GRAPH: json.dumps(document).encode()})


@pytest.mark.parametrize("name", ["data/aotinductor/model/a.so", "models/other.json", "extra/../a", "code.py"])
def test_only_parts_of_a_network_are_in_it(name, refused):
    assert "which is no part of a network" in refused({name: b"{}"})


@pytest.mark.parametrize("stored", [b"", bytes(8)])
def test_a_weight_is_no_larger_than_what_is_stored_of_it(stored, refused, parts):
    sizes = [{"as_int": 1 << 20}, {"as_int": 1 << 19}]
    config = json.loads(parts[WEIGHTS])
    meta = config["config"]["conv.weight"]["tensor_meta"]
    meta["sizes"], meta["strides"] = sizes, [{"as_int": 0}, {"as_int": 0}]
    path = config["config"]["conv.weight"]["path_name"]
    changed = {WEIGHTS: json.dumps(config).encode(), f"data/weights/{path}": stored}
    assert f"but {len(stored)} bytes are stored" in refused(changed)
