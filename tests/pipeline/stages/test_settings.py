"""Settings that are read from config.yaml and settings that the workflow passes as JSON are one key of the store."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline import backends
from pipeline.config.project import Data, Quantize, Training, Verify
from pipeline.config.targets import Bench, Check
from pipeline.models import resolve
from pipeline.stages import command
from pipeline.stages.settings import settings_of

PROJECT = Path(__file__).resolve().parents[3]
TARGETS = {
    "phone": {"backend": "executorch", "precision": "fp32"},
    "apple": {"backend": "coreml", "precision": "auto"},
    "jetson": {"backend": "tensorrt", "precision": "int8", "options": {"dynamic_batch": {"opt": 2, "max": 4}}},
}


def whole_numbers(section: type) -> dict[str, int]:
    """An integer for each float field of a section that accepts one."""
    found = {}
    for name, field in section.model_fields.items():
        for number in (1, 2, 0) if field.annotation in (float, float | None) else ():
            try:
                section(**{name: number})
            except ValidationError:
                continue
            found[name] = number
            break
    return found


def written(whole: bool):
    """A configuration of every precision, with its defaults or with whole numbers; and its targets."""

    def numbers(section: type) -> dict[str, int]:
        return whole_numbers(section) if whole else {}

    own = {"mean": [0, 0, 0], "std": [1, 1, 1], "pixel_range": 1} if whole else {}
    values = {
        "data": numbers(Data),
        "models": {"toy": own},
        "training": numbers(Training),
        "verify": numbers(Verify),
        "quantize": numbers(Quantize),
        "targets": {name: {"check": numbers(Check), "bench": numbers(Bench)} for name in TARGETS},
    }
    return values, TARGETS


@pytest.fixture(params=["defaults", "whole numbers"])
def read(request, tmp_path):
    values, targets = written(request.param == "whole numbers")
    for name, target in targets.items():
        place = tmp_path / "targets" / name / "target.yaml"
        place.parent.mkdir(parents=True)
        place.write_text(yaml.safe_dump(target))
    return resolve.load(values, backends.rules(), tmp_path)


def test_whole_numbers_are_tried_where_floats_are_meant():
    assert {"learning_rate", "warmup_epochs", "weight_decay"} <= whole_numbers(Training).keys()
    assert {"sustained_seconds", "max_seconds"} <= whole_numbers(Bench).keys()
    assert whole_numbers(Check) and whole_numbers(Verify) and whole_numbers(Quantize)


@pytest.mark.parametrize("stage", command.STAGES)
def test_settings_through_json_are_the_same_key(read, stage):
    for target in TARGETS:
        precisions = [one.precision for one in read.candidates[target]] if target in read.candidates else [None]
        for precision in precisions:
            by_hand = settings_of(stage, read, "toy", target, precision)
            passed = type(by_hand).model_validate_json(by_hand.model_dump_json())
            assert passed == by_hand
            for mode in ("json", "python"):  # what stages give the store
                texts = [json.dumps(one.model_dump(mode=mode), sort_keys=True) for one in (by_hand, passed)]
                assert texts[0] == texts[1]


def test_what_was_trained_by_hand_is_found_by_the_workflow(tmp_path):
    """In processes of their own, as the rules start them."""
    (tmp_path / "config.yaml").write_text(
        textwrap.dedent("""
            data: {image_size: 16}
            models: {toy: {training: {epochs: 1, learning_rate: 1}}}
        """)
    )
    environment = {
        **os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "REPNETS_STORE": str(tmp_path / "store")
    }  # fmt: skip

    def run(stage: str, *options: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", stage, *options],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    read = resolve.load(values, backends.rules(), tmp_path)
    outputs = {"split": ["--output", "split.json"]}
    outputs["train"] = ["--split", "split.json", "--checkpoint", "toy.safetensors", "--metrics", "metrics.jsonl"]
    for stage, options in outputs.items():
        assert f"{stage}: built" in run(stage, "--model", "toy", *options)
        passed = settings_of(stage, read, "toy").model_dump_json()
        assert f"{stage}: from the store" in run(stage, "--settings", passed, *options)
