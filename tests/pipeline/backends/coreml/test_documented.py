import re
from pathlib import Path

from pipeline.backends.coreml.operations import OPERATIONS

PAGE = Path(__file__).parents[4] / "docs" / "core-ml-evaluator.md"


def test_the_page_lists_the_operations():
    listed = re.findall(r"`(\w+)`", PAGE.read_text().split("## Operations")[1])
    assert listed and len(listed) == len(set(listed))
    assert set(listed) == set(OPERATIONS)


def test_the_page_names_what_there_is():
    folder = PAGE.parents[1] / "pipeline" / "backends" / "coreml"
    modules = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    assert modules
    for name in modules:
        assert (folder / name).is_dir() or (folder / f"{name}.py").is_file(), name
