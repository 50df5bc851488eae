"""What appears at its place appears whole, or what stood there stays."""

import os
import stat

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


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_private_temporary_file_becomes_what_open_would_give(tmp_path, umask):
    """safetensors writes files of mode 0600 whatever the umask is."""
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        (tmp_path / "plain folder").mkdir()
        with replacing(tmp_path / "weights.safetensors") as fresh:
            save_file({"a": torch.zeros(2)}, fresh)
        with replacing(tmp_path / "pack") as fresh:
            fresh.mkdir(mode=0o700)
            (fresh / "run.sh").touch(mode=0o700)
            (fresh / "inner").touch(mode=0o600)
            (fresh / "link").symlink_to(tmp_path / "precious")
            (tmp_path / "precious").touch(mode=0o600)
            (tmp_path / "precious").chmod(0o640)
    finally:
        os.umask(before)

    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("weights.safetensors") == mode("pack/inner") == mode("plain") == 0o666 & ~umask
    assert mode("pack") == mode("pack/run.sh") == mode("plain folder") == 0o777 & ~umask
    assert (tmp_path / "pack/link").is_symlink() and mode("precious") == 0o640
