"""What appears at its place appears whole, or what stood there stays."""

import pytest

from pipeline.artifacts.atomic import replacing


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("was_there", [True, False])
def test_a_file_takes_its_place(tmp_path, was_there):
    place = tmp_path / "report.md"
    if was_there:
        place.write_text("old")
    with replacing(place) as fresh:
        fresh.write_text("new")
        assert place.exists() == was_there
    assert place.read_text() == "new" and names_in(tmp_path) == ["report.md"]


@pytest.mark.parametrize("was_there", [True, False])
def test_a_folder_takes_its_place(tmp_path, was_there):
    place = tmp_path / "fused.mlpackage"
    if was_there:
        place.mkdir()
        (place / "old").touch()
    with replacing(place) as fresh:
        fresh.mkdir()
        (fresh / "new").touch()
    assert names_in(place) == ["new"] and names_in(tmp_path) == ["fused.mlpackage"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_where_writing_fails_what_stood_there_stays(tmp_path, is_folder):
    place = tmp_path / "report.md"
    place.write_text("old")
    with pytest.raises(OSError, match="disk"), replacing(place) as fresh:
        (fresh / "a").mkdir(parents=True) if is_folder else fresh.write_text("half")
        raise OSError("the disk is full")
    assert place.read_text() == "old" and names_in(tmp_path) == ["report.md"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    (place / "one").touch()
    with pytest.raises(OSError), replacing(place) as fresh:
        fresh.write_text("new")
    assert names_in(place) == ["one"] and names_in(tmp_path) == ["photos"]
