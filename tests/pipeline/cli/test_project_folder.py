"""`repnets report` and `repnets clean`: nothing goes that a user wrote."""

import pytest

from pipeline.cli import main

MINE = (
    "config.yaml",
    "Snakefile",
    "targets/phone/target.yaml",
    "targets/phone/notes/plan.txt",
    "dist/toy.tar",
    "mine.pth",
)
BUILT = (
    "artifacts/toy/fused.pt2", "logs/toy/train.log", "report.md", "report.html", ".snakemake/log/a",
    "targets/phone/bench.json", "targets/phone/toy/manifest.json", "targets/phone/toy/fused.pte",
)  # fmt: skip


@pytest.fixture
def project(tmp_path):
    for name in (*MINE, *BUILT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content")
    return tmp_path


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_was_built_goes_and_what_a_user_wrote_stays(project, capsys):
    assert main.main(["clean", str(project), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert files(project) == {*MINE, *BUILT} and told.count("would delete") == 7
    assert main.main(["clean", str(project)]) == 0
    assert files(project) == set(MINE)
    assert main.main(["clean", str(project)]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_what_a_link_leads_to_stays(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    (elsewhere / "checkpoint").write_text("content")
    (project / "artifacts/toy/fused.pt2").unlink()
    (project / "artifacts/toy").rmdir()
    (project / "artifacts").rmdir()
    (project / "artifacts").symlink_to(elsewhere)
    assert main.main(["clean", str(project)]) == 0
    assert not (project / "artifacts").is_symlink() and (elsewhere / "checkpoint").is_file()


def test_a_folder_that_is_no_project_is_left(tmp_path, capsys):
    (tmp_path / "artifacts").mkdir()
    assert main.main(["clean", str(tmp_path)]) == 2
    assert "is no project" in capsys.readouterr().err and (tmp_path / "artifacts").is_dir()


def test_the_report_is_found_and_opened(project, monkeypatch, capsys):
    """By the browser that the user has set."""
    browser = project / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {project}/shown\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    assert main.main(["report", str(project), "--open"]) == 0
    assert capsys.readouterr().out.strip() == str(project / "report.html")
    assert (project / "shown").read_text() == (project / "report.html").as_uri()


def test_a_report_that_is_not_there_is_named(tmp_path, capsys):
    assert main.main(["report", str(tmp_path)]) == 2
    assert "report.html does not exist. Build it: snakemake" in capsys.readouterr().err
