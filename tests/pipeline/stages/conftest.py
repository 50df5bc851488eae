"""What several stages' tests share."""

from pathlib import Path

import pytest

from pipeline.data import splits


@pytest.fixture(scope="module")
def few(artifacts, tmp_path_factory) -> Path:
    """A split of 192 digits to train on and 100 to validate."""
    whole = splits.open_split(artifacts.split)
    parts = {"train": whole.parts["train"][:192], "val": whole.parts["val"][:100]}
    path = tmp_path_factory.mktemp("few") / "split.json"
    splits.write_split(path, splits.new_split(whole.name, None, whole.classes, whole.sources, [], parts))
    return path
