"""`repnets doctor`: on this machine, in an environment where nothing is installed, and of devices; and its page."""

import json
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from pipeline.backends.tensorrt import engines
from pipeline.cli import main, requirements

PROJECT = Path(__file__).resolve().parents[3]
PAGE = (PROJECT / "docs" / "doctor.md").read_text()
TARGETS = sorted(path.parent.name for path in PROJECT.glob("targets/*/target.yaml"))
KNOWN = {one.name: one for one in requirements.everything()}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(PROJECT)


def run(*words: object) -> int:
    return main.main(["doctor", *map(str, words)])


def test_every_shipped_target_can_be_built_and_checked_where_the_project_is_installed(tmp_path, capsys):
    assert run("--json", tmp_path / "doctor.json") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "this machine"
    assert said.splitlines()[-1] == "every target in question can be built and checked here"
    document = json.loads((tmp_path / "doctor.json").read_text())
    assert document["met"] is True and list(document["targets"]) == TARGETS
    assert {one["name"] for one in document["requirements"]} == set(KNOWN)
    assert document["targets"]["executorch"]["bench"] == {"yes": True, "how": "by ExecuTorch", "missing": []}
    coreml = document["targets"]["coreml"]["check"]
    assert coreml["yes"] and coreml["how"] in ("by evaluator of ML programs", "by Core ML")


def test_one_target_alone_and_a_name_that_is_wrong(capsys):
    assert run("--target", "coreml") == 0
    said = capsys.readouterr().out
    assert "coremltools" in said and "onnxruntime" not in said and "A runner is" not in said
    assert run("--target", "coreml-int9") == 2
    assert "there is no target `coreml-int9`; did you mean `coreml-int8`?" in capsys.readouterr().err


def bare(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the command where nothing is installed but what reads config.yaml, and that without its metadata."""
    folder.mkdir(exist_ok=True)
    for name in ("pydantic", "pydantic_core", "yaml", "typing_extensions", "annotated_types", "typing_inspection"):
        origin = Path(find_spec(name).origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        if not (folder / source.name).exists():
            (folder / source.name).symlink_to(source)
    code = f"""
import sys
sys.path[:0] = {[str(PROJECT), str(folder)]!r}
from pipeline.cli import main
sys.exit(main.main({["doctor", *words]!r}))
"""
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=PROJECT, capture_output=True, text=True)


def test_where_nothing_is_installed_each_command_is_named(tmp_path):
    done = bare(tmp_path / "site")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {', '.join(TARGETS)} cannot be built and checked here")
    table = done.stdout[done.stdout.index("to get what is missing") :]
    for line in (
        r'torch +pip install "torch>=2.14,<2.15" +no build and no check of any target',
        r'coremltools +pip install "coremltools>=9.0,<10" +no build and no check of coreml, coreml-int8',
        r'onnxruntime +pip install "onnxruntime>=1.22,<2" +no check of tensorrt, tensorrt-int8',
        r'torchao +pip install "executorch>=1.5,<1.6" +no build and no check of coreml-int8, executorch-int8, tens.*',
        r"All Python packages at once, in the project's folder: pip install --editable \.",
        r"executorch +no +no +not here",
    ):
        assert re.search(rf"^  {line}$", table, re.MULTILINE), line
    assert all(package.name in table for package in requirements.PACKAGES)


def test_a_version_that_will_not_do_is_as_good_as_none(tmp_path):
    for name, version in (("executorch", "1.4.0"), ("torch", "2.15.0")):
        about = tmp_path / "site" / f"{name}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    said = bare(tmp_path / "site").stdout
    assert re.search(r"^  executorch +1\.4\.0; >=1\.5,<1\.6 is needed +writes", said, re.MULTILINE)
    assert re.search(r"^  torch +2\.15\.0; >=2\.14,<2\.15 is needed +networks", said, re.MULTILINE)
    assert re.search(r'^  executorch +pip install "executorch>=1\.5,<1\.6"', said, re.MULTILINE)


def project(folder: Path, config: str, **target: str) -> Path:
    (folder / "targets" / "mine").mkdir(parents=True)
    lines = {"backend": "executorch", "precision": "fp32"} | target
    (folder / "targets/mine/target.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    (folder / "config.yaml").write_text(config)
    return folder / "config.yaml"


def test_what_the_configuration_names_and_is_not_there(tmp_path, capsys):
    config = project(tmp_path, "data: {name: imagefolder, root: /nowhere/screws}\nmodels: {toy: }\n")
    assert run("--config", config) == 1
    said = capsys.readouterr()
    assert "no build here of mine\n  why  There is no folder /nowhere/screws.\n  do   Set `data.root`" in said.out
    assert said.err.startswith("error: mine cannot be built and checked here")


def test_a_target_of_a_device_is_benched_there(tmp_path, capsys):
    config = project(tmp_path, "models: {toy: }\n", device="ssh://pi@raspberrypi")
    assert run("--config", config) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  mine +yes +by ExecuTorch +on ssh://pi@raspberrypi$", said, re.MULTILINE)
    assert "do   Ask it what it has: repnets doctor ssh://pi@raspberrypi" in said


def test_what_auto_tries_is_looked_for(tmp_path, capsys):
    config = project(tmp_path, "models: {toy: }\n", backend="coreml", precision="auto")
    assert run("--config", config) == 0
    assert re.search(r"^  torchao +\d", capsys.readouterr().out, re.MULTILINE)


def test_this_machine_as_a_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("local", "--python", sys.executable, "--json", tmp_path / "doctor.json") == 0
    said = capsys.readouterr().out
    said = said[said.index("\nlocal\n") :]
    assert re.search(r"^  executorch +by Python, executorch \d", said, re.MULTILINE)
    assert re.search(r"^  runtimes +executorch \d", said, re.MULTILINE)
    assert re.search(r"^  installed +nothing$", said, re.MULTILINE)
    told = json.loads((tmp_path / "doctor.json").read_text())["devices"]["local"]
    assert told["ship"]["yes"] is True and told["targets"]["executorch"]["yes"] is True


def test_a_python_without_a_runtime(tmp_path, monkeypatch, capsys):
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("local", "--python", tmp_path / "python", "--target", "executorch") == 0
    said = capsys.readouterr().out
    assert "has no executorch.\n  do   On the device: python3 -m pip install" in said


def test_devices_that_are_no_devices_or_do_not_answer(capsys, monkeypatch):
    monkeypatch.setenv("REPNETS_SSH", "ssh -F /dev/null")
    assert run("raspberrypi") == 2
    assert "`raspberrypi` names no device" in capsys.readouterr().err
    assert run("ssh://127.0.0.1:1", "local") == 1
    said = capsys.readouterr()
    assert "ssh://127.0.0.1:1\n  error    127.0.0.1 cannot be reached" in said.out
    assert "\nlocal\n" in said.out, "the others are asked all the same"
    assert said.err.startswith("error: 127.0.0.1 cannot be reached")


@pytest.mark.slow
def test_a_device_behind_ssh(ssh_device, capsys):
    assert run(ssh_device.url, "--python", sys.executable) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^{ssh_device.url}\n  system +.*Linux.*\n", said, re.MULTILINE)
    assert re.search(r"^  executorch-int8 +by Python, executorch \d", said, re.MULTILINE)


def blocks() -> list[str]:
    return re.findall(r"```\n\$ (repnets doctor.*?)\n```", PAGE, re.DOTALL)


def test_the_page_names_what_the_program_knows():
    """Each row of the page is a requirement, for the same reason; and each of the targets here is on the page."""
    rows = blocks()[0].partition("to get what is missing")[0]
    on_page = dict(re.findall(r"^  ([\w-]+) +(?:[\d.]+|yes|missing)  +(\S.*)$", rows, re.MULTILINE))
    kinds = {"int8", *(yaml.safe_load(path.read_text())["backend"] for path in PROJECT.glob("targets/*/target.yaml"))}
    assert on_page == {name: one.why for name, one in KNOWN.items() if not one.kinds or kinds & set(one.kinds)}


def plain(said: str) -> list[str]:
    """Lines without what differs between machines: facts, versions, widths of columns, and which programs are there."""
    lines = [line for line in said.splitlines() if not re.match(r"  (system|machine|disk|adb) |.*All Python", line)]
    lines = [re.sub(r"(?<=[ =v])\d+(\.\d+)+", "VERSION", line) for line in lines]
    return [re.sub(r" {2,}", "  ", line).rstrip() for line in lines]


def test_the_page_is_what_the_program_says(capsys):
    if platform.system() != "Linux" or engines.compute_capability() or shutil.which("trtexec"):
        pytest.skip("the page is of a Linux machine without a GPU, which this is not")
    assert run() == 0
    page = blocks()[0].partition("\n")[2]
    assert plain(capsys.readouterr().out) == plain(page)
