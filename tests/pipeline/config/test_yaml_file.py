"""Files of settings that are damaged, or made to fill memory: one paragraph, that names the line."""

import subprocess
import sys

import pytest

from pipeline import backends
from pipeline.config import yaml_file
from pipeline.errors import InputError
from pipeline.models import resolve

ALIASES = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
ALIASES += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]" for at in range(1, 10)]
BOMB = "models: {toy: }\nverify: {batch_size: {" + ", ".join(ALIASES) + "}}\n"

FILES = [
    (BOMB, "line 2: `&a0`: aliases are not read. Write the values out."),
    ("a: 1\nb: *a", "line 2: `*a`: aliases are not read"),
    ("a: &a [*a]", "line 1: `&a`: aliases are not read"),
    ("a: !!python/object/apply:os.system [ls]", "tags are not read"),
    ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4: the key `b` stands in line 2 already"),
    ("a: {b: 1}\n'a': 2", "line 2: the key `a` stands in line 1 already"),
    ("a: [{b: 1, b: 2}]", "line 1: the key `b` stands in line 1 already"),
    ("a: " + "[" * 5000, "line 1: nested deeper than 20 levels"),
    ("a: " + "{a: " * 5000, "line 1: nested deeper than 20 levels"),
    ("- " * 5000, "line 1: nested deeper than 20 levels"),
    ("a: " + "x" * 300_000, "cannot be settings: it has more than 250,000 bytes"),
    (b"a: \xff", "is not UTF-8: invalid start byte at byte 3"),
    ("a: 1".encode("utf-16"), "is not UTF-8"),
    (b"a: \0", "is not valid YAML: unacceptable character #x0000"),
    ('a: "b\\0c"', r"line 1: `b\x00c` holds a NUL character"),
    ("a:\n\tb: 1", "YAML is indented with spaces, not tabs."),
    ("a: [1", "line 1: not valid YAML: expected ',' or ']'"),
    ("a: 1\n--- \nb: 2", "line 2: not valid YAML: but found another document"),
    ("[a, b]", "must hold `key: value` lines, but it holds ['a', 'b']"),
    ("x" * 1000, "must hold `key: value` lines, but it holds xxx"),
    ("{3: a}", "line 1: the key `3` is read as no text. Put it in quotes: '3'."),
    ("no: a", "the key `no` is read as no text"),
    ("? [a]\n: b", "the key `[...]` is read as no text"),
    ("<<: {a: 1}", "the key `<<` is read as no text"),
    ("a: 2026-13-01", "holds a value that cannot be read: month must be in 1..12"),
    ("a: " + "9" * 5000, "is too long for a number"),
    ("a: 0x" + "f" * 5000, "is too long for a number"),
    ("a: =", "holds a value that cannot be read"),
]


@pytest.mark.parametrize(("content", "message"), FILES, ids=[message[:50] for _, message in FILES])
def test_a_file_that_is_refused(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        yaml_file.read(path)
    said = str(caught.value)
    assert message in said and said.startswith(str(path))
    assert len(said) < 500 + len(str(path)) and said.isprintable()


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        yaml_file.read(tmp_path)
    with pytest.raises(InputError, match="does not exist; run from the project's folder"):
        yaml_file.read(tmp_path / "config.yaml")


def test_lines_of_keys_and_of_items(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a:\n  b: 1\nc:\n  - 1\n  - d: 2\n")
    assert [yaml_file.line_of(path, key) for key in (["a", "b"], ["c", "1"], ["c", "1", "d"])] == [2, 5, 5]
    assert [yaml_file.line_of(path, key) for key in (["b"], ["c", "2"], ["a", "b", "0"], [])] == [None] * 4
    assert yaml_file.read(path) == {"a": {"b": 1}, "c": [1, {"d": 2}]}


@pytest.mark.parametrize("key", ["data", "models", "models.toy", "models.toy.training", "training", "verify",
                                 "quantize", "bundle", "targets", "targets.phone"])  # fmt: skip
@pytest.mark.parametrize("value", [["toy"], "toy" * 1000, 3, False, [], [[["x" * 9000] * 9000] * 9] * 9])
def test_a_value_where_keys_are_expected(tmp_path, monkeypatch, key, value):
    """Of any size: a message quotes 200 characters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets" / "phone").mkdir(parents=True)
    (tmp_path / "targets" / "phone" / "target.yaml").write_text("{backend: executorch, precision: fp32}")
    values = value
    for part in reversed(key.split(".")):
        values = {part: values}
    with pytest.raises(InputError, match=rf"`{key}` must hold `key: value` lines, but it is") as caught:
        resolve.load({"models": {"toy": None}} | values, backends.rules())
    assert len(str(caught.value)) < 500


def test_a_value_of_any_size_is_quoted_in_part(tmp_path, monkeypatch):
    """As `--configfile` can give it, which Snakemake reads."""
    monkeypatch.chdir(tmp_path)
    bomb = ["lol"] * 9
    for _ in range(30):
        bomb = [bomb] * 9
    for changes in (
        {"verify": {"batch_size": bomb}},
        {"verify": {"batch_size": "x" * 100_000}},
        {"verify": {"batch_size": -(10**5000)}},
        {"data": {"name": bomb}},
        {"models": {"toy": {"arch": bomb, "expand": "dbb"}}},
        {"x" * 100_000: 1},
        {3: 1},
        {"training": {3: 1}},
        {"models": {"toy": {3: 1}}},
        {"models": {3: 1}},
        {"models": {"x" * 100_000: None}},
    ):
        with pytest.raises(InputError) as caught:
            resolve.load({"models": {"toy": None}} | changes, backends.rules())
        assert len(str(caught.value)) < 800


def test_a_stage_ends_with_2_within_little_memory(tmp_path):
    (tmp_path / "config.yaml").write_text(BOMB)
    stage = f"exec {sys.executable} -m pipeline split --config config.yaml --output split.json"
    done = subprocess.run(["sh", "-c", f"ulimit -v 6000000; {stage}"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2, "error: config.yaml, line 2: `&a0`: aliases are not read. Write the values out.\n"
    )  # fmt: skip


def test_what_is_read(tmp_path):
    for text in ("", "# nothing\n", "\ufeffa: 1\n"):
        (tmp_path / "config.yaml").write_text(text)
        assert yaml_file.read(tmp_path / "config.yaml") == ({"a": 1} if "a: 1" in text else {})
    (tmp_path / "config.yaml").write_text("data: {root: ~/a, classes: [größe, 'no']}\nmodels:\n  toy:\n")
    assert yaml_file.read(tmp_path / "config.yaml") == {
        "data": {"root": "~/a", "classes": ["größe", "no"]}, "models": {"toy": None}
    }  # fmt: skip
