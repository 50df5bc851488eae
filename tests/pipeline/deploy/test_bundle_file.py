"""Bundles: the same bytes for the same content, and each damage found by name; signatures by a key made here."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace

import pytest

from pipeline.deploy import bundle_file
from pipeline.errors import InputError, StageError
from tests.fixtures.documents import bundle_manifest

MEMBERS = {
    "fused.pte": bytes(range(256)) * 9,
    "labels.txt": b"cat\ndog\n",
    "selftest.py": b"#!/usr/bin/env python3\n",
    "package/Data/weights.bin": b"\1" * 512,
}
DOCUMENT = bundle_manifest(tolerance=1e-4)


@pytest.fixture
def tar(tmp_path):
    return bundle_file.write(tmp_path / "dist", MEMBERS, DOCUMENT)


def rewritten(path, change):
    """The tar written anew by Python's own module, after its members, (TarInfo, content), went through a function."""
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in change(members):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def added(path, name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    for field, value in {"mode": 0o644, **fields}.items():
        setattr(info, field, value)
    rewritten(path, lambda members: [*members, (info, content)])


def refused(path, *said):
    with pytest.raises(InputError) as error:
        bundle_file.open_bundle(path)
    for part in (path.name, *said):
        assert part in str(error.value)
    return str(error.value)


def test_a_bundle_is_named_by_its_content_and_opens(tar):
    bundle = bundle_file.open_bundle(tar)
    assert tar.name == f"toy-executorch-{bundle.digest[:12]}.tar" == f"{bundle.name}.tar"
    assert list(bundle.members) == ["bundle.json", *sorted(MEMBERS)]
    assert bundle.manifest.tolerance == 1e-4 and json.loads(bundle.read("bundle.json"))["schema"] == 1
    assert bundle.read("labels.txt") == b"cat\ndog\n"
    assert bundle.manifest.files["fused.pte"].size_bytes == 2304


def test_tar_itself_reads_it(tar, tmp_path):
    listed = subprocess.run(["tar", "--numeric-owner", "-tvf", tar], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines() if "selftest" in line] == ["-rwxr-xr-x"]
    assert all(line.split()[1] == "0/0" and "1970-01-01" in line for line in listed.splitlines())
    subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
    assert all((tmp_path / name).read_bytes() == content for name, content in MEMBERS.items())


def test_the_same_content_gives_the_same_bytes(tar, tmp_path):
    file = tmp_path / "elsewhere" / "labels"
    file.parent.mkdir()
    file.write_bytes(MEMBERS["labels.txt"])
    file.chmod(0o600)
    members = {name: MEMBERS[name] for name in reversed(MEMBERS)} | {"labels.txt": file}
    again = bundle_file.write(tmp_path / "other", members, DOCUMENT)
    assert again.name == tar.name and again.read_bytes() == tar.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == [again.name]


@pytest.mark.parametrize(
    "members, document",
    [(MEMBERS | {"labels.txt": b"dog\ncat\n"}, DOCUMENT), (MEMBERS, replace(DOCUMENT, tolerance=1e-3))],
)
def test_another_content_has_another_name(tar, tmp_path, members, document):
    assert bundle_file.write(tmp_path, members, document).name != tar.name


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "./x", "a\\x", "-x", ".x", "a b", "c:x", "ä", ""])
def test_nothing_is_written_under_a_path_that_is_not_allowed(tmp_path, name):
    with pytest.raises(InputError, match="no path below the bundle's own folder"):
        bundle_file.write(tmp_path, {name: b""}, DOCUMENT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["model", "target"])
def test_a_name_that_a_device_may_not_read_is_refused(tmp_path, key):
    with pytest.raises(InputError, match=f"the {key} `modèle` cannot be part of a bundle's name.*Rename it"):
        bundle_file.write(tmp_path, MEMBERS, replace(DOCUMENT, **{key: "modèle"}))


def test_it_unpacks_whole(tar, tmp_path):
    folder = tmp_path / "installed" / "new"
    bundle_file.open_bundle(tar).unpack(folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "bundle.json",
        *MEMBERS,
    }
    assert all((folder / name).read_bytes() == content for name, content in MEMBERS.items())
    assert (folder / "selftest.py").stat().st_mode & 0o777 == 0o755
    assert (folder / "labels.txt").stat().st_mode & 0o777 == 0o644
    with pytest.raises(InputError, match="is not empty"):
        bundle_file.open_bundle(tar).unpack(folder)


def test_a_bundle_that_changes_after_it_was_opened_is_not_unpacked(tar, tmp_path):
    bundle = bundle_file.open_bundle(tar)
    content = bytearray(tar.read_bytes())
    content[bundle.members["labels.txt"].start] ^= 1
    tar.write_bytes(content)
    with pytest.raises(InputError, match=r"`labels.txt` has changed since"):
        bundle.unpack(tmp_path / "installed" / "new")
    assert list((tmp_path / "installed").iterdir()) == []


def test_a_flipped_bit_is_found_wherever_it_is(tar):
    """In headers, in contents, in bundle.json, between files and after the last: every byte has one right value."""
    right = tar.read_bytes()
    last = 0
    for at in [*range(0, len(right), 37), len(right) - 1]:
        damaged = bytearray(right)
        damaged[at] ^= 1 << at % 8
        tar.write_bytes(damaged)
        refused(tar)
        last = at
    assert last == len(right) - 1
    tar.write_bytes(right)
    bundle_file.open_bundle(tar)


def test_a_flipped_byte_in_a_file_is_told_by_the_file(tar):
    start = bundle_file.open_bundle(tar).members["fused.pte"].start
    damaged = bytearray(tar.read_bytes())
    damaged[start + 100] ^= 0x10
    tar.write_bytes(damaged)
    refused(tar, "`fused.pte` does not have the sha256", "copy or build it again")


def test_a_tolerance_that_was_raised_is_found(tar):
    content = tar.read_bytes()
    assert content.count(b'"tolerance": 0.0001') == 1
    tar.write_bytes(content.replace(b'"tolerance": 0.0001', b'"tolerance": 0.9001'))
    refused(tar, "bundle.json does not have the digest")


@pytest.mark.parametrize("name", ["fused.pte", "package", "fused"])
def test_a_check_of_another_file_is_refused(tmp_path, name):
    """Of a file, of a folder, or of the program that the lineage names."""
    package = hashlib.sha256(f"Data/weights.bin\0{hashlib.sha256(MEMBERS['package/Data/weights.bin']).hexdigest()}\n"
                             .encode()).hexdigest()  # fmt: skip
    right = {"fused.pte": hashlib.sha256(MEMBERS["fused.pte"]).hexdigest(), "package": package, "fused": "11"}
    about = {"file": "package" if name == "package" else "fused.pte", "lineage": {"fused": "11"}}
    for number, told in enumerate((right[name], "00")):
        document = bundle_manifest(**about, checked={"subjects": {name: told, "manifest": "22"}})
        tar = bundle_file.write(tmp_path / str(number), MEMBERS, document)
        if told == right[name]:
            bundle_file.open_bundle(tar)
        else:
            refused(tar, f"its check was of another {name} than the bundle holds or names")


@pytest.mark.parametrize(("field", "value"), [("sha256_of_file", "0" * 64), ("backend", "a b"), ("run", ["sh"])])
def test_what_bundle_json_cannot_say_is_refused(tar, field, value):
    def change(members):
        for info, content in members:
            if info.name == "bundle.json":
                said = {**json.loads(content), field: value}
                content = json.dumps({**said, "digest": bundle_file.digest({**said, "digest": ""})}).encode()
            yield info, content

    rewritten(tar, change)
    refused(tar, f"`{field}` in bundle.json, ", "is not what a bundle can have")


@pytest.mark.parametrize("length", [0, 100, 512, 700, 5000, -512, -1])
def test_a_bundle_that_was_cut_short_is_refused(tar, length):
    tar.write_bytes(tar.read_bytes()[:length])
    refused(tar, "copy or build it again")


def test_what_is_hidden_after_the_end_is_found(tar):
    with tar.open("ab") as file:
        file.write(b"\0" * 10240)
    refused(tar, "does not end as it must")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "./escaped", "a\\..\\escaped"])
def test_a_path_that_climbs_out_is_refused(tar, name):
    added(tar, name, b"gotcha")
    refused(tar, f"`{name}`", "no path below the bundle's own folder", "do not install it")


@pytest.mark.parametrize(
    "kind, said",
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device node"),
        (tarfile.BLKTYPE, "a device node"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.DIRTYPE, "a folder's own entry"),
        (tarfile.GNUTYPE_LONGNAME, "an entry of type b'L'"),
        (tarfile.XHDTYPE, "an entry of type b'x'"),
    ],
)
def test_a_link_or_a_device_node_is_refused(tar, kind, said):
    info = tarfile.TarInfo("evil")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tar, "a", format=tarfile.USTAR_FORMAT) as file:
        file.addfile(info)
    refused(tar, "`evil`", said, "plain files alone")


def test_a_name_that_comes_twice_is_refused(tar):
    added(tar, "labels.txt", b"dog\ncat\n")
    refused(tar, "`labels.txt` twice")


def test_names_that_are_one_where_case_does_not_count_are_refused(tar):
    added(tar, "Labels.txt", b"dog\ncat\n")
    refused(tar, "both `labels.txt` and `Labels.txt`")


def test_a_file_in_the_place_of_a_folder_is_refused(tar):
    added(tar, "package", b"")
    refused(tar, "`package` as a file and as a folder")


def test_a_file_that_is_not_listed_is_refused(tar):
    added(tar, "extra.sh", b"rm -rf ~", mode=0o755)
    refused(tar, "`extra.sh`, which bundle.json does not name")


def test_a_file_that_is_missing_is_refused(tar):
    rewritten(tar, lambda members: [one for one in members if one[0].name != "labels.txt"])
    refused(tar, "names `labels.txt`, but the bundle does not hold it")


def test_a_script_that_no_longer_is_one_is_refused(tar):
    def change(members):
        for info, _ in members:
            info.mode = 0o644
        return members

    rewritten(tar, change)
    refused(tar, "the header of `selftest.py`")


def test_bundle_json_must_come_first(tar):
    rewritten(tar, lambda members: members[1:] + members[:1])
    refused(tar, "its first file is not bundle.json")


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"schema": 1, "files": 3}', b"\xff", b"[" * 100_000])
def test_a_bundle_json_that_cannot_be_read_is_refused(tar, text):
    rewritten(tar, lambda members: [(members[0][0], text), *members[1:]])
    refused(tar, "bundle.json is no manifest of a bundle of this pipeline", "copy or build it again")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": "../toy"}, "names no model or target as it must"),
        ({"target": 3}, "target: input should be a valid string"),
        ({"digest": None}, "digest: input should be a valid string"),
        ({"files": {"labels.txt": {"sha256": 3, "size_bytes": 8}}}, "files.labels.txt.sha256: "),
    ],
)
def test_a_bundle_json_whose_names_are_none_is_refused(tar, change, said):
    def changed(members):
        document = json.loads(members[0][1]) | change
        return [(members[0][0], json.dumps(document).encode()), *members[1:]]

    rewritten(tar, changed)
    refused(tar, said)


@pytest.mark.parametrize(
    "version, said",
    [
        ({"schema": 2}, ("of schema 2", "Update repnets")),
        ({"format": 1}, ("made by an older version of repnets", "Build it again: snakemake bundles.")),
    ],
)
def test_another_version_says_what_to_do(tar, version, said):
    def changed(members):
        document = json.loads(members[0][1])
        del document["schema"]
        return [(members[0][0], json.dumps(version | document).encode()), *members[1:]]

    rewritten(tar, changed)
    refused(tar, *said)


def test_what_is_no_bundle_is_refused(tar, tmp_path):
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(tar.read_bytes()))
    refused(packed, "not the tar of a bundle")
    with pytest.raises(InputError, match="does not exist"):
        bundle_file.open_bundle(tmp_path / "none.tar")
    with pytest.raises(InputError, match="is a folder"):
        bundle_file.open_bundle(tmp_path)


@pytest.fixture
def key(tmp_path):
    """A key of the user's, and the file of those whom they trust."""
    place = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", place], check=True)
    (tmp_path / "allowed").write_text(f"me@example.org {place.with_suffix('.pub').read_text()}")
    return place


def test_a_signature_holds_and_leaves_the_bundle_as_it_is(tar, key, tmp_path):
    before = tar.read_bytes()
    assert bundle_file.sign(tar, key).name == f"{tar.name}.sig"
    first = bundle_file.signature_of(tar).read_bytes()
    bundle_file.sign(tar, key)
    assert tar.read_bytes() == before and bundle_file.signature_of(tar).read_bytes() == first
    assert "me@example.org" in bundle_file.verify_signature(tar, tmp_path / "allowed", "me@example.org")


def test_an_unsigned_bundle_is_refused_where_a_signature_is_required(tar, key, tmp_path):
    with pytest.raises(InputError, match=r"is not signed, and a signature is required.*ssh-keygen -Y sign"):
        bundle_file.verify_signature(tar, tmp_path / "allowed", "me@example.org")


def test_a_bundle_that_was_changed_after_it_was_signed_is_refused(tar, key, tmp_path):
    bundle_file.sign(tar, key)
    with tar.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="or it was changed after it was signed"):
        bundle_file.verify_signature(tar, tmp_path / "allowed", "me@example.org")


def test_a_stranger_is_refused(tar, key, tmp_path):
    bundle_file.sign(tar, key)
    with pytest.raises(InputError, match=r"not one of you@example.org"):
        bundle_file.verify_signature(tar, tmp_path / "allowed", "you@example.org")
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    bundle_file.sign(tar, other)
    with pytest.raises(InputError, match=r"not one of me@example.org"):
        bundle_file.verify_signature(tar, tmp_path / "allowed", "me@example.org")


def test_a_signature_made_for_something_else_is_refused(tar, key, tmp_path):
    subprocess.run(["ssh-keygen", "-Y", "sign", "-f", key, "-n", "git", tar], check=True, capture_output=True)
    with pytest.raises(InputError, match=r"not one of me@example.org"):
        bundle_file.verify_signature(tar, tmp_path / "allowed", "me@example.org")


def test_a_key_with_a_passphrase_is_refused_and_nothing_waits(tar, tmp_path):
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    with pytest.raises(InputError, match=r"could not be signed.*ssh-add"):
        bundle_file.sign(tar, locked)
    assert not bundle_file.signature_of(tar).exists()
    with pytest.raises(InputError, match="there is no key"):
        bundle_file.sign(tar, tmp_path / "none")


def test_allowed_signers_that_are_missing_say_what_to_write(tar, tmp_path):
    with pytest.raises(InputError, match="Write a line a signer"):
        bundle_file.verify_signature(tar, tmp_path / "none", "me@example.org")


def test_without_openssh_the_error_says_how_to_get_it(tar, key, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StageError, match="apt-get install openssh-client"):
        bundle_file.sign(tar, key)
    assert shutil.which("ssh-keygen") is None
