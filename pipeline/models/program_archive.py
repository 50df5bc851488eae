"""Whether a .pt2 can be given to torch: torch.export.load unpickles, imports and evaluates what a file tells it to.

What torch reads from the archive is held here against the little that a network needs, and the rest is refused. The
archive is read by torch's own reader, so that nothing is seen differently later.
"""

import ast
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import quoted

_ROOM = 8 << 30  # bytes of a file
_JSON_ROOM = 256 << 20  # bytes of the graph
_MEMBERS = 200_000
_EXPANDED = 1 << 20  # elements of a tensor that repeats what it stores
_KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|"
    r"models/model\.json|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)|extra/[\w.+-]+"
)
_PAYLOADS = (("weights", "weight_"), ("constants", "tensor_"))

_PLAIN = re.compile(r"[\w.:/+<>,; -]{0,1000}")
_IDENTIFIER = re.compile(r"([A-Za-z_]\w{0,499})?", re.ASCII)  # a name that torch writes into the code of a network
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}", re.ASCII)
_FUNCTION = re.compile(
    r"(Floor|Clean|Ceil|IntTrue|FloatTrue)Div|(Python)?Mod|(Ceil|Floor|Trunc|Round)ToInt|(Trunc)?ToFloat|ModularIndexing|"
    r"Identity|Where|Max|Min|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Add|Mul|Pow|Integer|Rational|(Une|E)quality|"
    r"(Strict)?(Less|Greater)Than|ceiling|floor"
)
_NAMED = {"Symbol": _SYMBOL, "Float": re.compile(r"[\d.e+-]{1,40}", re.ASCII)}
_ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.Invert),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.BoolOp, ast.And, ast.Or),
)
_INPUT = re.compile(r"L((\['\w{1,100}'\]|\[\d{1,4}\]){1,4})(\.(size|stride)\(\)\[\d\]|\.storage_offset\(\))?", re.ASCII)

_IN_GUARDS = re.compile(r"\b(torch\.sym_(max|min|float|int|not|ite|sqrt)|math\.(ceil|floor|trunc))\(")

_PLAIN_FUNCTION = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|truediv|and_|or_)|math\.trunc|"
    r"torch\.sym_(not|int|float|ite|max|min|sqrt)|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
)
_OPERATOR = re.compile(r"torch\.ops\.(aten|quantized_decomposed|torchvision)\.(\w{1,100})\.(\w{1,100})", re.ASCII)
_PRIVATE = re.compile(  # operators of aten that begin with _ check less than others; these are in ordinary programs
    r"_(softmax|log_softmax|to_copy|unsafe_view|conj|adaptive_avg_pool[23]d|prelu_kernel|weight_norm|"
    r"native_batch_norm_legit\w*|upsample_(bi\w+|nearest_exact[123]d)_?\w*|scaled_dot_product_\w+|assert_tensor_metadata|"
    r"assert_scalar|assert_async)"
)
_WITHOUT_RESULT = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"}
_WITHOUT_TENSOR = {"sym_size", "sym_stride", "sym_numel", "item"}
_TAKEN = re.compile(
    r"(Optional\[|List\[)*(Tensor|int|float|bool|number|str|Device|complex|Optional\[Tensor\]|Generator)\]*"
)


class UnsafeError(Exception):
    """A file holds what would run code, or what no network of this project needs."""


def require_safe(content: bytes) -> None:
    """Hold all that torch.export.load reads of a .pt2 against what a network needs.

    Args:
        content: of the file.

    Raises:
        UnsafeError: it holds a pickle, code, an unknown part or operator, or exceeds a limit; says which.
        Exception: it is damaged: torch's reader and parsers raise many kinds.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    if len(content) > _ROOM:
        raise UnsafeError(f"it has {len(content)} bytes; the limit is {_ROOM}")
    with PT2ArchiveReader(io.BytesIO(content)) as archive:
        names, size_of = archive.get_file_names(), archive.archive_file.get_record_size
        if len(names) > _MEMBERS or len(set(names)) < len(names):
            raise UnsafeError(f"it has {len(names)} parts, of which some come twice or are too many")
        for name in names:
            if not _KNOWN.fullmatch(name):
                raise UnsafeError(f"it holds {quoted(name)}, which is no part of a network")
        if sum(map(size_of, names)) > len(content):
            raise UnsafeError("its parts are larger than itself")
        for kind, prefix in _PAYLOADS:
            config = _json(archive.read_bytes(f"data/{kind}/model_{kind}_config.json"))
            for name, entry in config["config"].items():
                _require_plain_tensor(name, entry, prefix, lambda path, kind=kind: size_of(f"data/{kind}/{path}"))
        if size_of("models/model.json") > _JSON_ROOM:
            raise UnsafeError("its graph is too large")
        _require_harmless(_json(archive.read_bytes("models/model.json")), "")
        _require_tensors(archive.read_bytes("data/sample_inputs/model.pt"))


def require_one_folder(names: list[str]) -> None:
    """All members of a zip, as Python sees it, lie in one folder.

    Where torch fails on the archive it falls back on Python's reader and on a format of old, of pickles in no folder.
    """
    folders = {name.partition("/")[0] for name in names}
    if len(folders) != 1 or not all("/" in name for name in names):
        raise UnsafeError("it holds parts beside its one folder")


def _json(content: bytes) -> Any:
    return json.loads(content)


def _require_plain_tensor(name: str, entry: Mapping[str, Any], prefix: str, size_of: Callable[[str], int]) -> None:
    """A weight is stored as numbers, and is no larger than what is stored of it."""
    path, meta = entry["path_name"], entry["tensor_meta"]
    if entry["use_pickle"] is not False or not re.fullmatch(rf"{prefix}\d{{1,9}}", path) or meta is None:
        raise UnsafeError(f"{quoted(name)} is stored as a pickle or an object, which runs code when it is read")
    _require_path(name)
    _require_harmless(meta, "tensor_meta")
    sizes = [one["as_int"] for key in ("sizes", "strides") for one in meta[key]] + [meta["storage_offset"]["as_int"]]
    if not all(type(size) is int and 0 <= size < 2**40 for size in sizes):
        raise UnsafeError(f"{quoted(name)} has no sizes that are numbers")
    elements, stored = math.prod(one["as_int"] for one in meta["sizes"]), size_of(path)
    if elements > (max(stored, _EXPANDED) if stored else 0):
        raise UnsafeError(f"{quoted(name)} has {elements} elements, but {stored} bytes are stored of it")


def _require_tensors(pickled: bytes) -> None:
    """The sample inputs, which torch.export.save always pickles, are tensors and plain values."""
    import pickle

    import torch

    try:
        found = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeError(f"its sample inputs are no plain tensors ({quoted(error)})") from None
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise UnsafeError("its sample inputs are no inputs of a network")


def _require_harmless(value: Any, key: str) -> None:
    """Every name, text and number in the graph's JSON, by the key that it stands under."""
    if isinstance(value, Mapping):
        of_ranges = key == "range_constraints"
        for name, one in value.items():
            _require_arithmetic(name) if of_ranges else _require_path(name)
            _require_harmless(one, name)
    elif isinstance(value, list):
        for one in value:
            _require_harmless(one, key)
    elif isinstance(value, str):
        _RULES.get(key, _require_plain)(value)
    elif isinstance(value, int) and abs(value) > 2**63:
        raise UnsafeError("a number in its graph is too large")


def _require_plain(text: str) -> None:
    if not _PLAIN.fullmatch(text):
        raise UnsafeError(f"its graph holds {quoted(text)} where a plain word is expected")


def _require_path(text: str) -> None:
    if not text.isprintable() or re.search(r"""["'\\{}]""", text) or len(text) > 1000:
        raise UnsafeError(f"a weight or a value has the name {quoted(text)}")


def _require_identifier(text: str) -> None:
    if not _IDENTIFIER.fullmatch(text):
        raise UnsafeError(f"a value of its graph has the name {quoted(text)}, which is no identifier")


def _require_functions(text: str) -> None:
    """The functions that a layer came from, which torch looks up: names alone."""
    if not re.fullmatch(r"[\w.<>,;:\[\]() -]*", text):
        raise UnsafeError(f"its graph says that a layer came from {quoted(text)}")


@cache
def _require_operator(target: str) -> None:
    """Operators that compute tensors or sizes: none that reads or writes files, or calls Python."""
    import torch

    if _PLAIN_FUNCTION.fullmatch(target):
        return
    found = _OPERATOR.fullmatch(target)
    unknown = UnsafeError(f"its graph calls {quoted(target)}, which is no operator of a network here")
    if not found:
        raise unknown
    namespace, name, overload = found.groups()
    if namespace == "torchvision":
        import torchvision  # noqa: F401, registers its operators
    try:
        schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
    except (AttributeError, RuntimeError):
        raise unknown from None
    if namespace == "aten" and (name.startswith("fbgemm_") or (name[0] == "_" and not _PRIVATE.fullmatch(name))):
        raise unknown
    gives = [str(one.type) for one in schema.returns]
    computes = all(kind in ("Tensor", "List[Tensor]") for kind in gives) and (gives or name in _WITHOUT_RESULT)
    takes = all(_TAKEN.fullmatch(str(one.type)) and one.name != "filename" for one in schema.arguments)
    if not takes or not (computes or name in _WITHOUT_TENSOR):
        raise unknown


@cache
def _require_arithmetic(text: str) -> None:
    """A size is computed from symbols and numbers by a few functions: torch evaluates it as Python."""
    try:
        is_arithmetic = len(text) <= 5000 and _is_arithmetic(ast.parse(text, mode="eval"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        is_arithmetic = False
    if not is_arithmetic:
        raise UnsafeError(f"a size of its graph is {quoted(text)}, which is no plain arithmetic")


def _is_arithmetic(node: ast.AST, in_power: bool = False) -> bool:
    """Whether an expression has only numbers, symbols, signs and known functions, and no power of a power."""
    if isinstance(node, ast.Name):
        return node.id in ("true", "false") or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float, bool) and abs(node.value) < 2**63
    parts = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name):
            return False
        name, parts = node.func.id, node.args
        if name in _NAMED:  # Symbol('s31', positive=True), Float('0.5', precision=53)
            return len(parts) == 1 and _is_text(parts[0], _NAMED[name]) and all(map(_is_assumption, node.keywords))
        if not _FUNCTION.fullmatch(name) or node.keywords:
            return False
        is_power = name == "Pow"
    else:
        is_power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
        if not isinstance(node, _ARITHMETIC):
            return False
    if is_power and (in_power or not _is_small(parts[-1])):
        return False
    return all(_is_arithmetic(part, in_power or is_power) for part in parts)


def _is_text(node: ast.expr, pattern: re.Pattern[str]) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(pattern.fullmatch(node.value))


def _is_assumption(keyword: ast.keyword) -> bool:
    value = getattr(keyword.value, "value", None)
    return bool(re.fullmatch("[a-z_]{1,30}", keyword.arg or "")) and type(value) in (bool, int) and 0 <= value < 1000


def _is_small(node: ast.AST) -> bool:
    """An exponent from -4 to 4."""
    text = ast.unparse(node)
    return bool(re.fullmatch(r"-?[0-4]|Integer\(-?[0-4]\)", text))


def _require_guard(text: str) -> None:
    """A guard is arithmetic over the sizes of inputs; torch writes it into a function and runs that."""
    _require_arithmetic(_IN_GUARDS.sub("Max(", _INPUT.sub("s0", text)))


def _require_tree(text: str) -> None:
    """How inputs and outputs nest: tuples, lists and dicts alone. Torch imports what others name."""
    protocol, tree = json.loads(text)
    if protocol != 1:
        raise UnsafeError(f"how its inputs nest is of an unknown kind, {quoted(protocol)}")
    _require_nesting(tree)


def _require_nesting(tree: Mapping[str, Any]) -> None:
    kind, context = tree["type"], tree["context"]
    if kind in ("builtins.dict", "collections.OrderedDict"):
        names = json.loads(context) if isinstance(context, str) else context
        for name in names:
            _require_identifier(name) if isinstance(name, str) else None
    elif kind not in (None, "builtins.tuple", "builtins.list") or context not in (None, "null"):
        raise UnsafeError(f"its inputs or outputs are of {quoted(kind)}, and not tensors, tuples, lists or dicts")
    for child in tree["children_spec"]:
        _require_nesting(child)


def _any(text: str) -> None:
    """Text that torch keeps and does not use, or quotes."""


_RULES: dict[str, Callable[[str], None]] = {
    "expr_str": _require_arithmetic,
    "guards_code": _require_guard,
    "in_spec": _require_tree,
    "out_spec": _require_tree,
    "target": _require_operator,
    "as_operator": _require_operator,
    **dict.fromkeys(("name", "as_name", "user_input_name", "forward_arg_names", "field_names"), _require_identifier),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "fqn"), _require_path),
    "source_fn_stack": _require_functions,
    **dict.fromkeys(("as_string", "as_strings", "stack_trace", "nn_module_stack"), _any),
    **dict.fromkeys(("torch_fn", "custom", "from_node"), _any),
}


def unsafe(file: Path, why: UnsafeError) -> str:
    """The message for a file that is refused."""
    return (
        f"{file} is not read, because {why}; nothing of it was run. Save the network's weights instead, "
        "`torch.save(model.state_dict(), ...)` or safetensors, and name the factory that builds the network as `arch:` "
        "(docs/your-own-network.md)."
    )
