"""The stage that draws: two pictures of one network, made once."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from pipeline.config.stages import NoSettings
from pipeline.stages import draw

PROJECT = Path(__file__).resolve().parents[3]


def titles(path):
    root = ElementTree.parse(path).getroot()
    return {title.text for title in root.iter("{http://www.w3.org/2000/svg}title")}


def test_the_network_and_its_busiest_block_are_drawn_once(artifacts, tmp_path, capsys):
    places = {"structure": tmp_path / "structure.svg", "block": tmp_path / "block.svg"}
    draw.run(NoSettings(), checkpoint=artifacts.checkpoint, **places)
    assert {"before: stage1", "after: stage1", "before: head", "after: head"} <= titles(places["structure"])
    assert "after: stage3" in titles(places["block"])
    assert "before: stage1" not in titles(places["block"])
    assert "toy stage3" in places["block"].read_text().replace("&#160;", " ")
    first = {name: path.read_bytes() for name, path in places.items()}
    draw.run(NoSettings(), checkpoint=artifacts.checkpoint, **places)
    assert {name: path.read_bytes() for name, path in places.items()} == first
    assert "draw: from the store" in capsys.readouterr().out


def test_without_graphviz_the_stage_ends_with_2_and_says_what_to_install(artifacts, tmp_path):
    script = (
        "import sys; sys.modules['pygraphviz'] = None; from pipeline.stages import command\n"
        "sys.exit(command.by_name(['draw', *sys.argv[1:]]))"
    )
    options = ["--settings", "{}", "--checkpoint", artifacts.checkpoint]
    options += ["--structure", tmp_path / "structure.svg", "--block", tmp_path / "block.svg"]
    done = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Pictures are laid out by Graphviz")
    assert "pip install 'repnets[pictures]'" in done.stderr
    assert not (tmp_path / "structure.svg").exists()
