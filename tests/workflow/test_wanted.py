"""A file that no rule makes is answered with the nearest one that is made."""

import pytest


@pytest.fixture(scope="module")
def fresh(new_clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wanted")
    config = "models: {toy: , mine: {arch: toy}}"
    return new_clone(folder / "clone", folder / "store", config, ("executorch", "tensorrt"))


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("targets/tensort/bench.json", "targets/tensorrt/bench.json"),
        ("targets/executorch/toy/fused.pt", "targets/executorch/toy/fused.pte"),
        ("artifacts/mien/verify.json", "artifacts/mine/verify.json"),
    ],
)
def test_the_nearest_is_named(fresh, wanted, meant):
    run = fresh.snakemake("--dry-run", wanted)
    assert run.code == 2
    assert f"error: no rule makes `{wanted}`. Did you mean `{meant}`?\n" in run.output
    assert "Exception" not in run.output


def test_what_is_made_passes(fresh):
    run = fresh.snakemake("--dry-run", "artifacts/mine/verify.json", "--until", "artifacts/mine/fused.pt2")
    assert run.code == 0, run.output
    assert "error:" not in run.output


def test_the_value_of_an_option_is_no_file_that_is_asked_for(fresh):
    run = fresh.snakemake("--cleanup-metadata", "artifacts/gone/fused.pt2")
    assert "no rule makes" not in run.output
