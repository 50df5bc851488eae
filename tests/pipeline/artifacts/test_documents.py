"""JSON documents of stages: what is written is read again, and what is no such document is refused in words."""

import json

import pytest

from pipeline.artifacts import documents
from pipeline.artifacts.bench_result import WarmUp
from pipeline.artifacts.bundle_result import BundleResult
from pipeline.artifacts.check_result import CheckedForm, CheckResult, FileAccuracy, Flip, GateResult
from pipeline.artifacts.export_result import ExportedForm, Manifest
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.errors import InputError
from tests.fixtures.documents import write_manifest

SPEC = ExportSpec("fp16", (1, 3, 12, 12), Preprocessing(12, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ("a", "b")))


@pytest.fixture
def place(tmp_path):
    """manifest.json of two files."""
    for form in ("fused", "branched"):
        (tmp_path / f"{form}.pte").write_bytes(form.encode())
    write_manifest(tmp_path, "executorch", {form: tmp_path / f"{form}.pte" for form in ("fused", "branched")}, SPEC)
    return tmp_path / "manifest.json"


def changed(place, change):
    document = json.loads(place.read_text())
    change(document)
    place.write_text(json.dumps(document))


def test_what_is_written_is_read_again(place):
    written = place.read_text()
    manifest = documents.read(Manifest, place)
    assert manifest.preprocessing == SPEC.preprocessing and manifest.input.shape == (1, 3, 12, 12)
    documents.write(place, manifest)
    assert place.read_text() == written
    assert next(iter(json.loads(written).items())) == ("schema", 2)


def test_what_nothing_is_known_of_is_left_out_and_null_stays(tmp_path):
    held = GateResult(0.1, 0.01, flips=(Flip(3, 1, 2, 0.0),))
    forms = {"fused": CheckedForm({"join": 0}, GateResult(not_checked="no runtime"), 1.0, 0.5, held)}
    result = CheckResult("ok", None, {"fused.pte": "00"}, "ExecuTorch", 9, FileAccuracy(None, 0.5, 0.5), forms)
    documents.write(tmp_path / "check.json", result)
    assert documents.read(CheckResult, tmp_path / "check.json") == result
    assert list(json.loads((tmp_path / "check.json").read_text()).items())[:-1] == list({
        "schema": 1, "status": "ok", "reason": None, "subjects": {"fused.pte": "00"},
        "checked_by": "ExecuTorch", "images": 9,
        "accuracy": {"branched": None, "fused": 0.5, "file": 0.5, "metric": "top-1"},
        "forms": {
            "fused": {
                "census": {"join": 0},
                "converter": {"not_checked": "no runtime"}, "agreement": 1.0, "accuracy": 0.5,
                "precision": {
                    "tolerance": 0.1, "max_relative_error": 0.01,
                    "flips": [{"image": 3, "got": 1, "want": 2, "margin": 0.0}],
                },
            }
        },
    }.items())  # fmt: skip


def test_no_value_is_lost_on_the_way_to_a_document():
    values = {"runs": 3, "seconds": 0.5, "steady": True}
    assert documents.of(WarmUp, values) == WarmUp(3, 0.5, True)
    with pytest.raises(TypeError, match=r"WarmUp has no field for joules$"):
        documents.of(WarmUp, {**values, "joules": 1.0, "volts": None})
    form = {"precision": "fp32", "files": {"a.pte": {"sha256": "00", "size_bytes": 1, "date": 0}}, "facts": {}}
    with pytest.raises(TypeError, match=r"ExportedForm has no field for files\.a\.pte\.date$"):
        documents.of(ExportedForm, form)


def test_a_document_from_before_the_schema_is_of_the_first(place):
    changed(place, lambda document: document.pop("schema"))
    with pytest.raises(InputError, match=r"schema: 1 is not known\)\. Delete it and run again: the stage `export`"):
        documents.read(Manifest, place)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda document: document.pop("forms"), r"forms: field required"),
        (lambda document: document["input"].update(shape=["1"]), r"input\.shape\.0: input should be a valid integer"),
        (lambda document: document["forms"]["fused"].pop("files"), r"forms\.fused\.files: field required"),
        (lambda document: document.update(forms=3), r"forms: input should be an object"),
        (lambda document: document.update(forms={}), r"it names no file"),
        (lambda document: document["forms"]["fused"].update(files={}), r"it names no file"),
        (lambda document: document.update(schema="1"), r"schema: '1' is not known"),
        (lambda document: document.update(schema=0), r"schema: 0 is not known"),
        (lambda document: document.update(schema=True), r"schema: True is not known"),
    ],
)
def test_what_is_missing_or_of_another_type_is_named(place, change, said):
    changed(place, change)
    ends = r".* Delete it and run again: the stage `export` writes it\."
    with pytest.raises(
        InputError, match=rf"manifest\.json is no manifest of this pipeline, or was cut short.*{said}{ends}"
    ):
        documents.read(Manifest, place)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"schema": 1}', b"PK\x03\x04"])
def test_what_is_no_document_is_refused(place, content):
    place.write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json is no manifest of this pipeline, or was cut short"):
        documents.read(Manifest, place)


def test_a_document_of_another_kind_is_refused(place):
    changed(place, lambda document: document.update(schema=CheckResult.SCHEMA))
    with pytest.raises(InputError, match=r"manifest\.json is no result of a check of this pipeline"):
        documents.read(CheckResult, place)


def test_a_newer_schema_says_to_update(place):
    changed(place, lambda document: document.update(schema=3))
    with pytest.raises(
        InputError, match=r"schema 3, and this version of repnets reads 2: .* Update repnets; or delete"
    ):
        documents.read(Manifest, place)


def test_a_missing_document_says_how_to_build_it(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json does not exist\. Build it first: snakemake "):
        documents.read(Manifest, tmp_path / "manifest.json")


def test_the_form_that_ships_is_the_first(place):
    manifest = documents.read(Manifest, place)
    assert manifest.shipped == "fused" and manifest.shipped_form is manifest.forms["fused"]
    assert list(manifest.shipped_files) == ["fused.pte"] and list(manifest.files) == ["fused.pte", "branched.pte"]


def test_a_file_is_the_one_that_is_described_by_its_content(place):
    manifest, files = documents.read(Manifest, place), [place.with_name(f"{one}.pte") for one in ("branched", "fused")]
    assert manifest.opened(files) == {"fused": files[1], "branched": files[0]}
    with pytest.raises(InputError, match=r"the manifest names branched\.pte, but it was not given; pass it with"):
        manifest.opened(files[1:])
    files[0].write_bytes(b"fused")
    assert manifest.describes(files[1]) and not manifest.describes(files[0])
    assert not manifest.describes(place)
    with pytest.raises(
        InputError, match=r"branched\.pte is not the file that its manifest describes, .* Delete it and"
    ):
        manifest.opened(files)


DAMAGED = ["", "{", "[]", "3", '{"x": 1}', '{"bundle": 3}', "[" * 100_000, "\0", '{"schema": "' + "x" * 100_000 + '"}',
           '{"schema": ' + "9" * 5000 + "}", '{"' + "k" * 100_000 + '": 1}']  # fmt: skip


@pytest.mark.parametrize("content", [*DAMAGED, b"\xff", b"x" * 16_000_001], ids=range(len(DAMAGED) + 2))
@pytest.mark.parametrize("kind", [Manifest, CheckResult, BundleResult], ids=lambda kind: kind.__name__)
def test_a_damaged_document_is_one_sentence(tmp_path, kind, content):
    path = tmp_path / "document.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=f"Delete it and run again: the stage `{kind.STAGE}` writes it") as caught:
        documents.read(kind, path)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_a_folder_in_place_of_a_document(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read: Is a directory. Delete it"):
        documents.read(BundleResult, tmp_path)
    with pytest.raises(InputError, match=r"does not exist. Build it first"):
        documents.read(BundleResult, tmp_path / "bundle.json")


@pytest.mark.parametrize("name", ["", "a\nb", "a\r", "\x85", "a\u2028b", "\0", "gru\u0308n", "\ud800"])
def test_a_class_is_a_line_of_text(place, name):
    """So labels.txt, which a bundle has, holds as many lines as there are classes."""
    with pytest.raises(InputError, match="is not named as one can be"):
        Preprocessing(12, (0.5,) * 3, (0.2,) * 3, ("a", name))
    changed(place, lambda document: document["preprocessing"].update(classes=["a", name]))
    with pytest.raises(InputError):
        documents.read(Manifest, place)
