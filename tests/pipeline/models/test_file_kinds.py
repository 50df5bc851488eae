"""Files of other kinds that are given for a checkpoint: each is named, with the way out, and none is unpickled."""

import gzip
import json
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import InputError
from pipeline.models import external_checkpoints, file_kinds

STATE = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGES = [
    b"<!DOCTYPE html>\n<html><title>404</title></html>",
    b"\n  <HTML lang=en>",
    b"\xef\xbb\xbf<html>",
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
]


class Net(nn.Module):
    """The smallest network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2) of (N, 3)."""
        return self.fc(x)


def torch_script(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(Net().eval(), torch.zeros(1, 3)), path)


def onnx_file(path: Path) -> None:
    from onnx import TensorProto, helper, save

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", ends[:1], ends[1:])
    save(helper.make_model(graph), path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(1, 3),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/model.pth", b"x")


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "model.py")


KINDS = {
    "pointer": (lambda path: path.write_bytes(POINTER), r"is a Git LFS pointer.*`git lfs pull`"),
    **{f"page {number}": (lambda path, page=page: path.write_bytes(page), r"is a web page.*Download the file itself")
       for number, page in enumerate(PAGES)},
    "TorchScript": (torch_script, r"is a TorchScript archive.*torch\.jit\.load\(file\)\.state_dict\(\)"),
    "ONNX": (onnx_file, r"is an ONNX file.*torch\.save\(model\.state_dict\(\)"),
    "program": (exported, r"is a program of torch\.export.*torch\.save\(model\.state_dict\(\)"),
    "zip": (zipped, r"is a zip archive of other things \(`weights/model\.pth`\)\. Unpack it"),
    "tar": (tarred, r"is a tar archive\. Unpack it"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), r"is compressed with gzip\. Unpack it"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)), r"is an HDF5 file"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors", ".onnx", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_named_with_the_way_out(tmp_path, monkeypatch, kind, suffix):
    write, message = KINDS[kind]
    write(tmp_path / f"mine{suffix}")
    monkeypatch.setattr(torch, "load", None)  # it is told before anything is unpickled
    with pytest.raises(InputError, match=rf"mine{suffix} {message}") as error:
        external_checkpoints.read(tmp_path / f"mine{suffix}")
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
def test_a_wrong_ending_is_named_with_the_right_one(tmp_path, suffix):
    save_file(STATE, tmp_path / f"mine{suffix}")
    with pytest.raises(InputError, match=r"is a safetensors file\. Rename it to end in \.safetensors"):
        external_checkpoints.read(tmp_path / f"mine{suffix}")
    for zipped in (True, False):
        torch.save(STATE, tmp_path / "mine.safetensors", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"is a file of torch\.save.*Rename it to end in \.pth"):
            external_checkpoints.read(tmp_path / "mine.safetensors")


@pytest.mark.parametrize("start", [b"\x80\x02\x00", b"\x80\x05\x00", b"\x08\x10\x12", b"\x08\x01\x22"])
def test_a_table_whose_length_looks_like_another_kind_is_a_safetensors_file(tmp_path, start):
    """The length comes first in the file, before the table."""
    length = int.from_bytes(start, "little")
    table = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length)
    (tmp_path / "mine.safetensors").write_bytes(length.to_bytes(8, "little") + table.encode() + bytes(4))
    assert (tmp_path / "mine.safetensors").read_bytes().startswith(start)
    found, _, _ = external_checkpoints.read(tmp_path / "mine.safetensors")
    assert found["weight"].tolist() == [0.0]


@pytest.mark.parametrize("suffix", file_kinds.PICKLES)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_is_taken(tmp_path, suffix, zipped):
    torch.save(STATE, tmp_path / f"mine{suffix}", _use_new_zipfile_serialization=zipped)
    found, _, _ = external_checkpoints.read(tmp_path / f"mine{suffix}")
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
