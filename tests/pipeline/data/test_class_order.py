"""The order of the classes of an image folder."""

import json

import pytest

from pipeline.data import class_order
from pipeline.errors import InputError

NAMES = ("class1", "class10", "class2")
NATURAL = ("class1", "class2", "class10")


def test_orders_by_name():
    assert class_order.ordered(NAMES, "sorted") == NAMES
    assert class_order.ordered(NAMES, "natural") == NATURAL
    assert class_order.natural(["b", "a1b", "1", "a", "01"]) == ("01", "1", "a", "a1b", "b")
    assert class_order.ordered(NAMES, NATURAL) == NATURAL


@pytest.mark.parametrize(
    "index",
    [
        list(NATURAL),
        {"0": "class1", "1": "class2", "2": "class10"},
        {"class10": 2, "class2": 1, "class1": 0},
        {"1": ["class2", "tench"], "0": ["class1", "shark"], "2": ["class10", "ray"]},
    ],
)
def test_an_index_of_any_common_form_is_read(tmp_path, index):
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert class_order.ordered(NAMES, str(tmp_path / "index.json")) == NATURAL


@pytest.mark.parametrize(
    "order, told",
    [
        (("class1", "class2"), "lacks `class10`"),
        ((*NATURAL, "class3"), "names `class3`, which is no class folder"),
        ((*NATURAL, "class1"), "names a class twice"),
        ("~nobody-here/order.json", "is neither `sorted`, `natural`, a list of names, nor a file that can be read"),
        ("alphabetical", "`alphabetical` is neither `sorted`, `natural`, a list of names, nor a file"),
    ],
)
def test_another_set_of_classes_is_refused(order, told):
    with pytest.raises(InputError, match=told):
        class_order.ordered(NAMES, order)


@pytest.mark.parametrize("content", ["{", "3", "[1]", '{"0": "a", "7": "b"}', '{"0": []}', "[" * 100_000])
def test_what_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(InputError, match="is no index of classes"):
        class_order.ordered(NAMES, str(tmp_path / "index.json"))
