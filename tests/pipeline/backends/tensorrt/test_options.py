import pytest
import yaml

from pipeline import backends
from pipeline.artifacts import digests
from pipeline.backends.tensorrt.options import Options
from pipeline.config import project
from pipeline.errors import InputError


@pytest.fixture
def target(tmp_path):
    """The options of a target with these in its target.yaml."""

    def make(**options):
        (tmp_path / "config.yaml").write_text("models: {toy: }\n")
        folder = tmp_path / "targets" / "jetson"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "target.yaml").write_text(
            yaml.safe_dump({"backend": "tensorrt", "precision": "fp16", "options": options})
        )
        return project.load({"models": {"toy": None}}, backends.rules(), tmp_path).targets["jetson"].options

    return make


def test_the_defaults_of_a_target_are_those_of_the_backend(target):
    options = Options.of(target())
    assert (tuple(options.compute_capabilities), options.batches()) == (Options().compute_capabilities, None)
    assert options == Options()


def test_every_option_of_a_target_reaches_the_backend(target):
    given = {
        "compute_capabilities": ["8.9"],
        "dynamic_batch": {"min": 2, "opt": 4, "max": 8},
        "timing_cache": "here.timing",
        "builder_optimization_level": 5,
        "workspace_mb": 256,
        "tf32": True,
    }
    options = Options.of(target(**given))
    assert options.model_dump(mode="json") == given and options.batches() == (2, 4, 8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dynamic_batch": {"min": 4, "opt": 2, "max": 8}}, "needs min <= opt <= max and min < max, not 4, 2, 8"),
        ({"dynamic_batch": {"min": 2, "opt": 2, "max": 2}}, "needs min <= opt <= max and min < max, not 2, 2, 2"),
        ({"dynamic_batch": {"min": 0, "opt": 2, "max": 3}}, "min"),
        ({"builder_optimization_level": 6}, "builder_optimization_level"),
        ({"dynamic_batch": {"opt": 2, "max": 3, "mim": 1}}, "did you mean `min`"),
        ({"workspace": 6}, "did you mean `workspace_mb`"),
    ],
)
def test_an_option_that_cannot_be_is_told(target, options, told):
    with pytest.raises(InputError, match=told):
        target(**options)


def test_without_a_gpu_to_build_for_there_is_nothing_to_build():
    with pytest.raises(InputError, match=r"`compute_capabilities` is empty.* Name one, e\.g\. `\['8\.9'\]`"):
        Options.of({"compute_capabilities": []})


def test_all_of_the_folder_counts_for_the_store(monkeypatch):
    """The builder runs in a process of its own; its code shapes the engines all the same."""
    read = []
    original = digests._read_code
    digests.code_digest.cache_clear()
    monkeypatch.setattr(digests, "_read_code", lambda module, file: read.append(module) or original(module, file))
    digests.code_digest("pipeline.backends.tensorrt.backend")
    digests.code_digest.cache_clear()
    names = (
        *("build_script", "builder", "engines", "export", "layer_info", "on_device", "options", "progress"),
        *("runtime", "trtexec"),
    )
    assert {f"pipeline.backends.tensorrt.{name}" for name in names} <= set(read)
    assert {
        "pipeline.backends.onnx.backend",
        "pipeline.models.passes.dynamic_batch",
        "pipeline.models.passes.float16",
    } <= set(read)
