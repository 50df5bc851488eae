"""The configuration: what is accepted, and what each mistake is answered with."""

import json
import os
import re
import textwrap

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import backends
from pipeline.config import yaml_file
from pipeline.errors import InputError
from pipeline.models import resolve
from pipeline.stages import jobs
from pipeline.stages.settings import settings_of

CONFIG = """
data:
  name: digits
models:
  toy:
  mobileone_s0:
    image_size: 64
    training: {epochs: 15}
training:
  epochs: 3
"""
TARGET = """
backend: executorch
precision: fp32
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A project folder of one configuration and one target; returns a function that rewrites either."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = CONFIG, target: str = TARGET):
        (tmp_path / "config.yaml").write_text(textwrap.dedent(text))
        (tmp_path / "targets" / "phone").mkdir(parents=True, exist_ok=True)
        (tmp_path / "targets" / "phone" / "target.yaml").write_text(textwrap.dedent(target))
        return resolve.load(yaml_file.read(tmp_path / "config.yaml"), backends.rules())

    return write


def forms(read):
    return resolve.forms(read, read.targets["phone"], "toy")


UNLABELLED = """
data: {name: none, classes: 1000}
models:
  mine: {arch: toy, checkpoint: mine.pth}
"""


def test_without_pictures_the_targets_of_int8_are_left_out(written, capsys):
    read = written(UNLABELLED, "backend: executorch\nprecision: int8")
    assert (read.targets, read.left_out, read.data.has_labels) == ({}, ("phone",), False)
    jobs.tell_left_out(read)
    assert "phone are left out: the ranges of int8 come from pictures, and data.name is none" in capsys.readouterr().err
    with_folder = UNLABELLED.replace("none,", "pictures, root: photos,")
    assert list(written(with_folder, "backend: executorch\nprecision: int8").targets) == ["phone"]
    auto = written(UNLABELLED, "backend: executorch\nprecision: auto")
    assert [one.precision for one in auto.exported("phone")] == ["fp32", "fp16"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (", classes: 1000", "", "data.classes is not set, and without labels nothing tells how many classes"),
        ("none,", "pictures,", "data.root is not set; name the folder that holds the pictures"),
        (", checkpoint: mine.pth", "", "`mine` has no checkpoint, and images without labels train no network"),
        ("mine.pth", "mine.pth, recalibrate_bn: 64", "`recalibrate_bn` estimates statistics from images"),
        ("none,", "digits,", "data.classes is a number, which is for pictures and none"),
        ("1000", "1", "greater than or equal to 2"),
    ],
)
def test_what_images_without_labels_cannot_do(written, old, new, told):
    with pytest.raises(InputError, match=re.escape(told)):
        written(UNLABELLED.replace(old, new))


def test_expand_is_told_in_the_arch(written):
    read = written(CONFIG.replace("  toy:", "  own: {arch: resnet18, expand: dbb}"))
    assert (read.models["own"].arch, read.models["own"].expand) == ("resnet18+dbb", "dbb")
    with pytest.raises(InputError, match=r"config.yaml, line 5: `models.own.expand`: there is no `ddb`; did you mean"):
        written(CONFIG.replace("  toy:", "  own: {arch: resnet18, expand: ddb}"))


def test_a_model_takes_the_common_settings_and_changes_some(written):
    read = written()
    assert read.models["toy"].training.epochs == 3
    assert read.models["mobileone_s0"].training.epochs == 15
    assert (read.models["toy"].image_size, read.models["mobileone_s0"].image_size) == (32, 64)
    assert read.models["mobileone_s0"].arch == "mobileone_s0"


def test_a_model_may_have_a_name_of_its_own(written):
    assert written("models: {mine: {arch: toy}}").models["mine"].arch == "toy"


def test_a_network_of_timms_or_the_users_own(written, tmp_path):
    (tmp_path / "mynet.py").write_text("def build(num_classes):\n    pass\n")
    read = written("models: {one: {arch: 'timm:fastvit_t8'}, two: {arch: 'mynet:build', image_size: 3}}")
    assert (read.models["one"].arch, read.models["two"].arch) == ("timm:fastvit_t8", "mynet:build")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {toy: none}", "`models.toy` must hold `key: value` lines, but it is 'none'"),
        ("models: {toy: {training: 3}}", "`models.toy.training` must hold `key: value` lines, but it is 3"),
    ],
)
def test_a_model_that_is_no_mapping(written, text, message):
    with pytest.raises(InputError, match=message):
        written(text)


def test_what_the_command_line_gives_as_words_is_read_as_numbers(written):
    """Snakemake hands on the values of a nested `--config` as strings."""
    written()
    read = resolve.load({"models": {"toy": {"recalibrate_bn": "64", "mean": ["0.5", "0.5", "0.5"]}}}, backends.rules())
    assert (read.models["toy"].recalibrate_bn, read.models["toy"].mean) == (64, (0.5, 0.5, 0.5))


def test_mean_and_std_and_recalibration_of_one_model(written):
    read = written("models: {toy: {mean: [0.5, 0.5, 0.5], recalibrate_bn: 512}, b: {arch: toy}}")
    assert settings_of("train", read, "toy").mean == (0.5, 0.5, 0.5)
    assert settings_of("adopt", read, "b").mean is None
    assert settings_of("recalibrate", read, "toy").model_dump() == {"recalibrate_bn": 512}


def test_a_stage_is_told_only_what_it_reads(written):
    read = written()
    told = settings_of("train", read, "mobileone_s0").model_dump()
    images = {"image_size", "interpolation", "color_order", "resize", "pixel_range", "mean", "std", "inputs"}
    assert set(told) == {"arch", "training", *images}
    assert "bench" not in settings_of("export", read, "toy", "phone").model_dump()


def test_the_command_line_reaches_into_a_target(written):
    written()
    read = resolve.load({"models": {"toy": None}, "targets": {"phone": {"bench": {"threads": 2}}}}, backends.rules())
    assert read.targets["phone"].bench.threads == (2,)
    assert read.targets["phone"].backend == "executorch"


def test_launches_are_the_least_and_the_most(written):
    written()
    read = resolve.load(
        {"models": {"toy": None}, "targets": {"phone": {"bench": {"launches": [1, 2]}}}}, backends.rules()
    )
    assert read.targets["phone"].bench.launches == (1, 2)
    wrong = {(3, 2): "give the least before the most, not [3, 2]", (0, 1): "greater than or equal to 1"}
    for launches, said in wrong.items():
        with pytest.raises(InputError, match=re.escape(said)):
            resolve.load(
                {"models": {"toy": None}, "targets": {"phone": {"bench": {"launches": list(launches)}}}},
                backends.rules(),
            )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {toy: }", "config.yaml, line 1: unknown key `model`; did you mean `models`?"),
        (
            "models: {toy: }\ndata:\n  nam: digits",
            "config.yaml, line 3: unknown key `data.nam`; did you mean `name`?",
        ),
        (
            "models:\n  toy:\n    training:\n      epoch: 3",
            "config.yaml, line 4: unknown key `models.toy.training.epoch`; did you mean `epochs`?",
        ),
        (
            "models:\n  repvg_a0:",
            "config.yaml, line 2: there is no network `repvg_a0`; did you mean `repvgg_a0`?",
        ),
        (
            "models:\n  x: {arch: mobilone_s0}",
            "line 2: there is no network `mobilone_s0`; did you mean `mobileone_s0`?",
        ),
        (
            "models: {toy: }\ndata: {name: digit}",
            "`data.name`: there is no `digit`; did you mean `digits`?",
        ),
        ("models: {toy: }\ndata: {name: imagefolder}", "data.root is not set; name the folder"),
        (
            "models: {toy: }\ntraining: {epochs: 0}",
            "config.yaml, line 2: `training.epochs`: Input should be greater than or equal to 1, got 0",
        ),
        (
            "models:\n  mine:\n    arch: mynet:build",
            "config.yaml, line 3: there is no module `mynet`: it was looked for as mynet.py in",
        ),
        (
            "models:\n  timm:repvgg_a0:",
            "config.yaml, line 2: `timm:repvgg_a0` cannot name a folder of artifacts. Give the model a name of at "
            "most 64 letters, digits, `_`, `-` and `.`, and put the network under it: `my_model: "
            "{arch: timm:repvgg_a0}`.",
        ),
        ("models: {18: }", "line 1: the key `18` is read as no text. Put it in quotes"),
        ("models: {'-8': }", "`-8` cannot name a folder of artifacts"),
        (
            "models:\n  toy: {recalibrate_bn: 3}",
            "config.yaml, line 2: `models.toy`: recalibrate_bn is a number of training images: 32 or more, or 0 to",
        ),
        ("models: {toy: {recalibrate_bn: true}}", "`models.toy`: recalibrate_bn is a number of training images: 32"),
        (
            "models: {toy: {mean: [123.7, 116.3, 103.5]}}",
            "`models.toy`: mean is [123.7, 116.3, 103.5], and pixels are at most 1 there; set `pixel_range: 255`",
        ),
        ("models: {toy: {mean: [300, 0, 0]}}", "`models.toy.mean.0`: Input should be less than or equal to 255"),
        (
            "models: {toy: {color_order: gray, std: [1, 1, 1]}}",
            "std has 3 numbers, and a network that takes gray needs",
        ),
        ("models: {toy: {color_order: grey}}", "`models.toy.color_order`: there is no `grey`; did you mean `gray`?"),
        ("data: {resize: crop}\nmodels: {toy: }", "`data.resize`: there is no `crop`"),
        ("models: {repvgg_a0: {image_size: [64, 16]}}", "halves them to one, and not 64 x 16. Set"),
        ("models: {toy: {image_size: [64]}}", "`models.toy.image_size"),
        ("models: {toy: {std: [0.2, 0.2, 0]}}", "`models.toy.std.2`: Input should be greater than 0"),
        ("models: {}", "`models:` names no network"),
        (
            "models: {repvgg_a0: {image_size: 16}}",
            "`repvgg_a0` needs images of at least 32 x 32 pixels",
        ),
        ("models: {toy: }\ntargets: {fone: }", "there is no targets/fone/target.yaml; did you mean `phone`?"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_nearest_right_thing(written, text, message):
    with pytest.raises(InputError) as caught:
        written(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "backend: tensortr\nprecision: fp16",
            "targets/phone/target.yaml, line 1: there is no backend `tensortr`; did you mean `tensorrt`?",
        ),
        (
            "backend: coreml\nprecision: fp16\noptions:\n  class_label: true",
            "targets/phone/target.yaml, line 4: unknown key `options.class_label`; did you mean `class_labels`?",
        ),
        ("backend: coreml\nprecision: fp17", "there is no `fp17`; did you mean `fp16`?"),
        ("precision: fp16", "targets/phone/target.yaml: `backend` is missing"),
        ("backnd: coreml\nprecision: fp16", "line 1: unknown key `backnd`; did you mean `backend`?"),
        ("backend: [1]\nprecision: fp16", "line 1: `backend`: Input should be a valid string, got [1]"),
        ("backend: coreml\nprecision: fp16\nname: a;b", "line 3: unknown key `name`"),
        (
            "backend: coreml\nprecision: w4\noptions:\n  minimum_deployment_target: iOS17",
            "`precision: w4` needs iOS18 or later, not iOS17, whose Core ML does not read it",
        ),
        ("backend: [", "not valid YAML"),
        (
            "backend: executorch\nprecision: fp32\ndevice: jetson",
            "targets/phone/target.yaml, line 3: `jetson` names no device. Give `local`, `ssh://user@host:port`",
        ),
        (
            "backend: coreml\nprecision: fp16\ndevice: ssh://mac",
            "line 3: Core ML is timed on a Mac by running the project there, and on an iPhone beside it, not over ssh.",
        ),
        (
            "backend: executorch\nprecision: fp32\nrunner: /opt/runner",
            "line 3: `runner:` names a program on a device that runs the files, but bench runs on this machine.",
        ),
        (
            "backend: tensorrt\nprecision: fp16\ndevice: ssh://orin\ndevice_python: python3.11",
            "line 4: `device_python:` names a program on a device that runs the files, but tensorrt does not use one.",
        ),
        (
            "backend: executorch\nprecision: fp32\ndevice: ssh://pi\nrunner: /opt/runner\ndevice_python: python3.11",
            "line 4: `runner:` and `device_python:` each run the files. Leave one out.",
        ),
    ],
)
def test_a_mistake_in_a_target(written, target, message):
    with pytest.raises(InputError) as caught:
        written(target=target)
    assert message in str(caught.value)


def test_a_path_in_the_home_folder_is_written_out(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    read = written("models: {toy: {checkpoint: ~/a.pth}}\ndata: {root: ~/b}\nbundle: {signing_key: ~/c}")
    paths = read.models["toy"].checkpoint, read.data.root, read.bundle.signing_key
    assert paths == tuple(str(tmp_path / name) for name in ("a.pth", "b", "c"))
    for path, said in (("~nobody-here/a", "`~nobody-here` is nobody's home folder"), ("a" * 256, "at most 255 bytes")):
        with pytest.raises(InputError, match=rf"config.yaml, line 1: `models.toy.checkpoint`: .*{said}"):
            written(f"models: {{toy: {{checkpoint: {path}}}}}")


@pytest.mark.parametrize(
    ("name", "said"),
    [("{best}.pth", "takes braces in a path for wildcards. Rename"), ("gone.pth", "is no file that is there. Correct")],
)
def test_a_checkpoint_that_the_rules_cannot_read(written, tmp_path, capsys, monkeypatch, name, said):
    monkeypatch.setenv("PATH", os.environ["PATH"])  # put back afterwards
    save_file({"stage1.weight": np.zeros(1)}, tmp_path / "{best}.pth")
    written(f"models: {{toy: {{checkpoint: '{name}'}}}}")
    with pytest.raises(SystemExit) as ended:
        jobs.configure({})
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_changed_device_runs_bench_alone_again(written):
    """Its settings hold the device; those of export and check do not."""
    here = written()
    there = written(target=TARGET + "device: ssh://pi\ndevice_python: /opt/venv/bin/python\n")
    settings = {
        stage: [settings_of(stage, one, "toy", "phone") for one in (here, there)]
        for stage in ("export", "check", "bench")
    }
    assert settings["export"][0] == settings["export"][1] and settings["check"][0] == settings["check"][1]
    assert (settings["bench"][0].device, settings["bench"][1].device) == ("local", "ssh://pi")
    assert settings["bench"][1].device_python == "/opt/venv/bin/python"


def test_a_key_from_the_command_line_has_no_line(written):
    written()
    with pytest.raises(InputError, match=r"config.yaml or --config: unknown key `training.lr`"):
        resolve.load({"models": {"toy": None}, "training": {"lr": 1}}, backends.rules())


def test_an_unknown_model_of_a_stage(written):
    with pytest.raises(InputError, match=r"no model `to`; did you mean `toy`"):
        settings_of("train", written(), "to")


@pytest.mark.parametrize(
    ("precision", "oldest"), [("fp16", "iOS16"), ("int8", "iOS17"), ("w8", "iOS16"), ("w4", "iOS18")]
)
def test_a_core_ml_target_is_for_the_oldest_system_that_reads_its_precision(written, precision, oldest):
    read = written(target=f"backend: coreml\nprecision: {precision}")
    assert read.targets["phone"].options["minimum_deployment_target"] == oldest


def test_a_target_without_a_baseline_exports_the_fused_form_alone(written):
    assert forms(written()) == ("fused", "branched")
    assert forms(written(target=TARGET + "baseline: none")) == ("fused",)


def test_an_int8_target_ships_the_quantized_form_beside_the_fused_one(written):
    int8 = "backend: tensorrt\nprecision: int8\n"
    read = written(target=int8)
    assert forms(read) == ("quantized", "fused")
    settings = settings_of("export", read, "toy", "phone")
    assert (settings.precision, settings.forms) == ("int8", ("quantized", "fused"))
    assert forms(written(target=int8 + "baseline: branched")) == ("quantized", "branched")
    assert forms(written(target=int8 + "baseline: none")) == ("quantized",)


def test_a_folded_model_has_an_int8_form_with_its_baseline(written, tmp_path):
    save_file({"stage1.weight": np.zeros(1), "stage1.bias": np.zeros(1)}, tmp_path / "folded.safetensors")
    read = written("models: {toy: {checkpoint: folded.safetensors}}", "backend: executorch\nprecision: int8")
    assert forms(read) == ("quantized", "fused")
    read = written(
        "models: {toy: {checkpoint: folded.safetensors}}",
        "backend: executorch\nprecision: int8\nbaseline: branched",
    )
    assert forms(read) == ("quantized",)


def test_core_ml_in_int8_is_for_ios_17(written):
    read = written(target="backend: coreml\nprecision: int8")
    assert read.targets["phone"].options["minimum_deployment_target"] == "iOS17"
    later = "backend: coreml\nprecision: int8\noptions: {minimum_deployment_target: iOS18}"
    assert written(target=later).targets["phone"].options["minimum_deployment_target"] == "iOS18"
    assert written(target="backend: coreml\nprecision: fp16").targets["phone"].options[
        "minimum_deployment_target"
    ] == "iOS16"  # fmt: skip


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "backend: coreml\nprecision: int8\noptions:\n  minimum_deployment_target: iOS16",
            "target.yaml, line 4: `precision: int8` needs iOS17 or later, not iOS16, whose Core ML does not read it",
        ),
        (
            "backend: executorch\nprecision: w8",
            "target.yaml, line 2: `precision: w8` compresses the weights alone, which only Core ML computes with. For "
            "executorch, choose int8, fp16 or fp32.",
        ),
        (
            "backend: coreml\nprecision: w4\nbaseline: fused",
            "target.yaml, line 3: `precision: w4` ships the fused network, so `baseline: fused` would compare it with "
            "itself",
        ),
        ("backend: coreml\nprecision: int4", "`precision`: there is no `int4`; did you mean `int8`?"),
        ("backend: coreml\nprecision: fp16\nbaseline: branch", "there is no `branch`; did you mean `branched`?"),
    ],
)
def test_precisions_and_baselines_that_do_not_fit(written, target, message):
    with pytest.raises(InputError) as caught:
        written(target=target)
    assert message in str(caught.value)


def test_a_model_that_came_folded_has_no_branched_form(written, tmp_path):
    save_file({"stage1.weight": np.zeros(1), "stage1.bias": np.zeros(1)}, tmp_path / "folded.safetensors")
    save_file({"stage1.dense.bn.bias": np.zeros(1)}, tmp_path / "whole.safetensors")
    read = written(
        """
        models:
          toy:
          mine: {arch: toy, checkpoint: folded.safetensors}
          other: {arch: toy, checkpoint: whole.safetensors}
          missing: {arch: toy, checkpoint: none.safetensors}
        """
    )
    assert {name: resolve.form(model) for name, model in read.models.items()} == {
        "toy": "training", "mine": "deploy", "other": "training", "missing": "training",
    }  # fmt: skip
    assert {name: settings_of("export", read, name, "phone").forms for name in read.models} == {
        "toy": ("fused", "branched"), "mine": ("fused",), "other": ("fused", "branched"),
        "missing": ("fused", "branched"),
    }  # fmt: skip
    assert [(made.name, made.models, made.folder, made.inputs) for made in jobs.exports(read)] == [
        ("phone_fused_branched", ("toy", "other", "missing"), "targets/phone/{model}", {}),
        ("phone_fused", ("mine",), "targets/phone/{model}", {}),
    ]


def test_the_form_is_not_for_the_user_to_say(written):
    with pytest.raises(InputError, match=r"unknown key `models.toy.form`"):
        written("models: {toy: {form: deploy}}")


AUTO = "backend: coreml\nprecision: auto\n"


@pytest.mark.parametrize(
    ("target", "precisions"),
    [
        ("backend: executorch\nprecision: auto", ["fp32", "fp16", "int8"]),
        ("backend: tensorrt\nprecision: auto\ncandidates: [int8, fp16]", ["int8", "fp16"]),
        (AUTO, ["fp16", "w8", "palette6"]),
        (AUTO + "options: {minimum_deployment_target: iOS17}", ["fp16", "int8", "w8", "palette6"]),
        (AUTO + "options: {minimum_deployment_target: iOS18}", ["fp16", "int8", "w8", "w4", "palette6"]),
    ],
)
def test_auto_tries_what_the_backend_has_and_the_system_reads(written, target, precisions):
    read = written(target=target)
    assert [one.precision for one in read.candidates["phone"]] == precisions
    assert [forms for one in read.candidates["phone"] if (forms := one.forms) not in (("fused",), ("quantized",))] == []


def test_a_candidate_that_is_named_takes_the_system_that_it_needs(written):
    read = written(target=AUTO + "candidates: [fp16, w4]")
    systems = [one.options["minimum_deployment_target"] for one in read.candidates["phone"]]
    assert systems == ["iOS16", "iOS18"]


def test_the_rules_of_auto_are_those_of_its_candidates_and_a_race(written):
    read = written(target="backend: executorch\nprecision: auto\ncandidates: [fp32, int8]")
    made = jobs.exports(read)
    assert [one.folder for one in made] == ["targets/phone/{model}/fp32", "targets/phone/{model}/int8"]
    assert [one.files for one in made] == [
        ["targets/phone/{model}/fp32/fused.pte"], ["targets/phone/{model}/int8/quantized.pte"],
    ]  # fmt: skip
    assert made[1].inputs == {"quantized": "artifacts/{model}/quantized.pt2"}
    assert jobs.races(read) == {"phone": made}
    assert jobs.races(written()) == {}


def test_what_the_stages_of_a_candidate_are_told(written):
    read = written(target="backend: executorch\nprecision: auto\ncandidates: [fp32, int8]")
    told = settings_of("export", read, "toy", "phone", "int8")
    assert (told.precision, told.forms, told.target) == ("int8", ("quantized",), "phone")
    assert settings_of("check", read, "toy", "phone", "fp32").may_lose
    assert settings_of("race", read, "toy", "phone").model == "toy"
    with pytest.raises(InputError, match=r"the target `phone` has several candidates; say which with --precision"):
        settings_of("export", read, "toy", "phone")
    with pytest.raises(InputError, match=r"the target `phone` has no candidate `int4`; did you mean `int8`\?"):
        settings_of("check", read, "toy", "phone", "int4")
    assert not settings_of("check", written(), "toy", "phone").may_lose


def test_int8_may_lose_only_where_no_target_ships_it(written, tmp_path):
    assert not settings_of("quantize", written()).may_lose
    assert settings_of("quantize", written(target="backend: executorch\nprecision: auto")).may_lose
    (tmp_path / "targets" / "pi").mkdir()
    (tmp_path / "targets" / "pi" / "target.yaml").write_text("backend: executorch\nprecision: int8")
    assert not settings_of("quantize", written(target="backend: executorch\nprecision: auto")).may_lose


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (TARGET + "candidates: [fp32, int8]", "candidates are what `precision: auto` chooses from; leave them out"),
        (AUTO + "baseline: none", "auto times its candidates against each other; leave out `baseline`"),
        (AUTO + "candidates: [fp16]", "give two or more different precisions to choose from, not ['fp16']"),
        (AUTO + "candidates: [fp16, fp17]", "there is no `fp17`; did you mean `fp16`?"),
        (
            "backend: executorch\nprecision: auto\ncandidates: [fp32, w8]",
            "`precision: w8` compresses the weights alone",
        ),
        (
            AUTO + "candidates: [fp16, w4]\noptions: {minimum_deployment_target: iOS16}",
            "`precision: w4` needs iOS18 or later, not iOS16",
        ),
    ],
)
def test_a_mistake_in_what_auto_chooses_from(written, target, message):
    with pytest.raises(InputError, match=re.escape(message)):
        written(target=target)


def test_stages_get_what_torch_reads_before_it_is_imported_and_the_users_own_word_wins(written, monkeypatch):
    written()
    monkeypatch.setenv("PATH", os.environ["PATH"])  # put back afterwards
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    jobs.configure({})
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["THP_MEM_ALLOC_ENABLE"]) == ("ACTIVE", "1")


@pytest.mark.parametrize("name", ["a; touch ran", "$(touch ran)", "-rf", "a b", "a" * 65, "ä", ".hidden", "a\nb"])
def test_a_name_of_which_the_shell_could_make_more_is_refused(written, tmp_path, name):
    folder = tmp_path / "targets" / name
    folder.mkdir(parents=True)
    (folder / "target.yaml").write_text(TARGET)
    with pytest.raises(InputError, match="a target's folder is named with at most 64 letters"):
        written()
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot name a folder of artifacts"):
        written(CONFIG.replace("  toy:", f"  {json.dumps(name)}: {{arch: toy}}"))
