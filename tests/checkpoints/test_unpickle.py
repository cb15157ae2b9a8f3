"""Hostile and damaged pickles, for torch files and for nnU-Net v1's plain ones."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mednext_edge.checkpoints.unpickle import load_pickle, load_torch
from mednext_edge.errors import CheckpointError, UnsafePickleError


class Hostile:
    """Runs `function(*arguments)` in whoever unpickles it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def attacks(mark: Path) -> dict[str, Hostile]:
    """Ways to create the file `mark` while a checkpoint is read."""
    return {
        "os.system": Hostile(os.system, f"touch {mark}"),
        "eval": Hostile(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": Hostile(getattr, "", "join"),
        "open": Hostile(open, str(mark), "w"),
        "torch.load": Hostile(torch.load, str(mark)),
        "numpy.load": Hostile(np.load, str(mark)),
        "Path.touch": Hostile(Path.touch, mark),
    }


ATTACKS = {
    "os.system": "posix.system|nt.system",
    "eval": "builtins.eval",
    "getattr": "builtins.getattr",
    "open": "_?io.open",
    "torch.load": "torch.serialization.load",
    "numpy.load": "numpy.*load",
    "Path.touch": "pathlib.|getattr",
}


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_hostile_torch_file_is_refused_by_name(tmp_path: Path, kind: str, zipped: bool) -> None:
    file, mark = tmp_path / "model.pth", tmp_path / "mark"
    content = {"state_dict": {"stem.weight": torch.ones(2)}, "epoch": attacks(mark)[kind]}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafePickleError, match=ATTACKS[kind]):
        load_torch(file)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_by_name(tmp_path: Path, kind: str, protocol: int) -> None:
    file, mark = tmp_path / "model.model.pkl", tmp_path / "mark"
    file.write_bytes(pickle.dumps({"plans": attacks(mark)[kind]}, protocol))
    with pytest.raises(UnsafePickleError, match=ATTACKS[kind]):
        load_pickle(file)
    assert not mark.exists()


def test_the_environment_cannot_loosen_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, mark = tmp_path / "model.pth", tmp_path / "mark"
    torch.save({"x": attacks(mark)["os.system"]}, file)
    with pytest.raises(UnsafePickleError):
        load_torch(file)
    assert not mark.exists()


def test_what_others_allowed_is_not_allowed_here(tmp_path: Path) -> None:
    from fractions import Fraction

    file = tmp_path / "model.pth"
    torch.save({"x": Fraction(1, 2)}, file)
    with torch.serialization.safe_globals([Fraction]):
        with pytest.raises(UnsafePickleError, match=r"fractions\.Fraction"):
            load_torch(file)
        assert Fraction in torch.serialization.get_safe_globals()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(UnsafePickleError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_torch(file)


def test_numpy_comes_back_as_plain_data(tmp_path: Path) -> None:
    content = OrderedDict(
        f8=np.float64(0.5),
        f4=np.float32(0.25),
        i8=np.int64(-3),
        flag=np.bool_(True),
        text=np.str_("abc"),
        array=np.arange(6, dtype=np.int32).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        big=np.arange(3, dtype=">f4"),
        ragged=np.array([[1], [2, 3]], dtype=object),
        nothing=np.empty((0, 3)),
        nested=[(np.float64(1.0), {"a": {1, 2}})],
    )
    expected = {
        "f8": 0.5,
        "f4": 0.25,
        "i8": -3,
        "flag": True,
        "text": "abc",
        "array": [[0, 1, 2], [3, 4, 5]],
        "fortran": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "big": [0.0, 1.0, 2.0],
        "ragged": [[1], [2, 3]],
        "nothing": [],
        "nested": [(1.0, {"a": {1, 2}})],
    }
    for protocol in range(2, 5):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
        assert load_pickle(tmp_path / "a.pkl") == expected
    torch.save(content, tmp_path / "a.pth")
    assert load_torch(tmp_path / "a.pth") == expected


def renamed_numpy(data: bytes) -> bytes:
    """A pickle as numpy 1 writes it (protocol 2 names modules as plain lines)."""
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_names_of_numpy_1_are_known(tmp_path: Path) -> None:
    value = {"a": np.float64(0.5), "b": np.arange(3)}
    data = renamed_numpy(pickle.dumps(value, 2))
    assert b"numpy.core.multiarray" in data
    (tmp_path / "a.pkl").write_bytes(data)
    assert load_pickle(tmp_path / "a.pkl") == {"a": 0.5, "b": [0, 1, 2]}
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "a.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, renamed_numpy(old.read(name)))
    assert load_torch(tmp_path / "a.pth") == {"a": 0.5, "b": [0, 1, 2]}


def reduce_call(name: bytes, *arguments: bytes, build: bytes = b"") -> bytes:
    """A protocol-2 pickle that calls one global with pickled arguments, then sets a state."""
    module, attribute = name.rsplit(b".", 1)
    return b"\x80\x02c" + module + b"\n" + attribute + b"\n(" + b"".join(arguments) + b"tR" + build + b"."


DTYPE = b"cnumpy\ndtype\n(U\x02f8I00\nI01\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
RECORD = b"cnumpy\ndtype\n(U\x02V8I00\nI01\ntR"
NUMPY_TRICKS = {
    "a scalar shorter than its type": reduce_call(b"numpy._core.multiarray.scalar", DTYPE, b"U\x02ab"),
    "a record type": reduce_call(b"numpy._core.multiarray.scalar", RECORD, b"U\x08abcdefgh"),
    "an object scalar": reduce_call(
        b"numpy._core.multiarray.scalar", b"cnumpy\ndtype\n(U\x02O8I00\nI01\ntR", b"U\x08abcdefgh"
    ),
    "an array of another class": reduce_call(
        b"numpy._core.multiarray._reconstruct", b"cbuiltins\nset\n", b"(K\x00t", b"U\x01b"
    ),
    "an array over memory": reduce_call(b"numpy.ndarray", b"(K\x01t", b"U\x01O", b"U\x08abcdefgh"),
    "an array larger than its bytes": reduce_call(
        b"numpy._core.multiarray._reconstruct",
        b"cnumpy\nndarray\n",
        b"(K\x00t",
        b"U\x01b",
        build=b"(I1\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft" + DTYPE + b"I00\nU\x01btb",
    ),
    "a state for a function": b"\x80\x02c_codecs\nencode\n}U\x01aK\x01sb.",
    "another codec": reduce_call(b"_codecs.encode", b"X\x01\x00\x00\x00a", b"X\x05\x00\x00\x00rot13"),
    "something outside the file": b"\x80\x02U\x03abcQ.",
    "a list within itself": b"\x80\x02]q\x00h\x00a.",
    "an enormous memo": b"\x80\x02]r\xff\xff\xff\xff(",
    "an enormous text": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
}


@pytest.mark.parametrize("data", NUMPY_TRICKS.values(), ids=NUMPY_TRICKS)
def test_tricks_with_allowed_names_fail(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.pkl"
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_pickle(file)


def test_shared_parts_do_not_multiply(tmp_path: Path) -> None:
    value: list[Any] = ["x"]
    for _ in range(64):
        value = [value, value]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    assert len(load_pickle(tmp_path / "a.pkl")) == 2


@pytest.mark.parametrize("keep", [0, 1, 5, 50, -1])
def test_truncated_pickles_are_refused(tmp_path: Path, keep: int) -> None:
    data = pickle.dumps({"plans": {"a": list(range(50))}})
    (tmp_path / "a.pkl").write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        load_pickle(tmp_path / "a.pkl")


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        load_torch(tmp_path / "b.pth")


def test_a_flipped_bit_in_a_weight_is_seen(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "a.pth")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum of its part a/data/0"):
        load_torch(tmp_path / "a.pth")


def test_other_archives_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(CheckpointError, match="no torch file"):
        load_torch(tmp_path / "a.npz")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / "b.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_torch(tmp_path / "b.pt")
