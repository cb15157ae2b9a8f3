"""Bare and wrapped state_dicts, and every file that is none."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mednext_edge.checkpoints import load
from mednext_edge.checkpoints.keys import to_monai
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.mednext import MedNeXt
from tests.checkpoints.writers import SMALL, network

State = dict[str, Tensor]


def same_output(a: torch.nn.Module, b: torch.nn.Module, config: MedNeXtConfig = SMALL) -> bool:
    x = torch.randn((1, config.in_channels) + (8,) * config.spatial_dims)
    with torch.no_grad():
        return torch.equal(a(x), b(x))


def reference(config: MedNeXtConfig = SMALL) -> MedNeXt:
    net = network(config).eval()
    net.do_ds = False
    return net


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "network_weights": lambda s: {"network_weights": s},
    "model": lambda s: {"model": s, "args": {"lr": 0.1}},
    "DataParallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled DataParallel": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "Lightning": lambda s: {"state_dict": {**{f"net.{k}": v for k, v in s.items()}, "loss.weight": torch.ones(3)}},
    "MONAI names": to_monai,
    "MONAI names, wrapped": lambda s: {"state_dict": {f"module.{k}": v for k, v in to_monai(s).items()}},
    "without dummy_tensor": lambda s: {k: v for k, v in s.items() if k != "dummy_tensor"},
    "parameters": lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_wrapping_gives_the_same_network(tmp_path: Path, wrap: Callable[[State], Any], zipped: bool) -> None:
    file = tmp_path / "weights.bin"
    torch.save(wrap(reference().state_dict()), file, _use_new_zipfile_serialization=zipped)
    model = load(file)
    assert isinstance(model.net, MedNeXt)
    assert model.net.config == SMALL
    assert not model.net.training
    assert not model.net.do_ds
    assert same_output(model.net, reference())
    assert model.source.format == "state-dict"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) for k, v in reference().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    loaded = load(tmp_path / "a.pt").net.state_dict()
    assert {t.dtype for t in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[k], state[k].float()) for k in state)


def test_bare_safetensors(tmp_path: Path) -> None:
    save_file(to_monai(reference().state_dict()), tmp_path / "a.safetensors")
    model = load(tmp_path / "a.safetensors")
    assert same_output(model.net, reference())


def test_the_default_task_says_what_it_assumed(tmp_path: Path) -> None:
    config = replace(SMALL, in_channels=2, spatial_dims=2)
    torch.save(network(config).state_dict(), tmp_path / "heart v2.pt")
    model = load(tmp_path / "heart v2.pt")
    task = model.task
    assert task.name == "heart_v2"
    assert task.inference.patch == (128, 128)
    assert task.preprocessing.spacing is None
    assert [n.scheme for n in task.preprocessing.normalization] == ["zscore", "zscore"]
    assert task.labels == {"background": 0, "class_1": 1, "class_2": 2}
    assert any("assumed z-score" in note for note in model.notes)
    assert any("layer norm" in note for note in model.notes)
    assert len(model.source.sha256) == 64


def test_a_deep_network_gets_a_patch_it_can_take(tmp_path: Path) -> None:
    config = MedNeXtConfig(
        channels=1,
        blocks=(1,) * 17,
        expansion=(1,) * 17,
        down_expansion=(1,) * 8,
        down_grn=(False,) * 8,
        spatial_dims=2,
    )
    torch.save(MedNeXt(config).state_dict(), tmp_path / "a.pt")
    model = load(tmp_path / "a.pt")
    assert model.task.inference.patch == (256, 256)
    assert any("rounded up" in note for note in model.notes)


def test_patch_and_labels_of_the_caller(tmp_path: Path) -> None:
    torch.save(reference().state_dict(), tmp_path / "a.pt")
    labels = {"background": 0, "head": 1, "tail": 2}
    task = load(tmp_path / "a.pt", patch=(8, 16, 24), labels=labels).task
    assert task.inference.patch == (8, 16, 24)
    assert task.labels == labels
    with pytest.raises(UsageError, match=r"multiples of 4, such as \(12, 16, 24\)"):
        load(tmp_path / "a.pt", patch=(9, 16, 24))
    with pytest.raises(UsageError, match="does not have 3 axes"):
        load(tmp_path / "a.pt", patch=(16, 16))
    with pytest.raises(UsageError, match="do not number 3 classes"):
        load(tmp_path / "a.pt", labels={"background": 0, "head": 1})


def changed(**changes: Tensor | None) -> State:
    state = {**network().state_dict(), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {k: v for k, v in state.items() if v is not None}


BAD_STATES: dict[str, tuple[State, str]] = {
    "missing": (
        {k: v for k, v in network().state_dict().items() if ".norm." not in k},
        r"18 missing \(`enc_block_0\.0\.norm\.weight`.*, \.\.\.\)",
    ),
    "unexpected": (changed(extra__weight=torch.ones(1)), r"1 unexpected \(`extra\.weight`\)"),
    "wrong shape": (
        changed(dec_block_0__0__norm__weight=torch.ones(5)),
        r"`dec_block_0\.0\.norm\.weight` has shape \(5,\); expected \(4,\)",
    ),
    "uneven kernel": (changed(up_0__conv1__weight=torch.ones(8, 1, 3, 3, 5)), r"`up_0\.conv1\.weight` has shape"),
    "NaN": (changed(stem__bias=torch.tensor([0.0, float("nan"), 0.0, 0.0])), r"`stem\.bias` holds 1 NaN or infinite"),
    "Inf": (changed(stem__bias=torch.full((4,), float("-inf"))), r"`stem\.bias` holds 4 NaN or infinite"),
    "integers": (changed(stem__bias=torch.ones(4, dtype=torch.int32)), r"`stem\.bias` is of type torch\.int32"),
    "sparse": (changed(stem__bias=torch.ones(4).to_sparse()), r"`stem\.bias` is a torch\.sparse_coo"),
    "meta": (changed(stem__bias=torch.ones(4, device="meta")), r"`stem\.bias`"),
    "more claimed than held": (changed(stem__bias=torch.ones(1).expand(2**40)), r"`stem\.bias` claims the shape"),
    "no down blocks": ({k: v for k, v in network().state_dict().items() if "down" not in k}, "down blocks"),
    "another network": ({"conv_blocks_context.0.weight": torch.ones(1)}, "like an nnU-Net v1 U-Net"),
    "an unknown network": ({"layer1.weight": torch.ones(1)}, r"does not look like a MedNeXt.*`layer1\.weight`"),
}


@pytest.mark.parametrize(("state", "message"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_tensors_are_named(tmp_path: Path, state: State, message: str) -> None:
    file = tmp_path / "bad.pt"
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(file)
    assert str(caught.value).count(str(file)) == 1


def nifti() -> bytes:
    return struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(4)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"epoch 1\nloss 0.3\n", r"not a checkpoint: it begins with b'epoch"),
    "NIfTI": (nifti(), "not a checkpoint"),
    "NIfTI, packed": (gzip.compress(nifti()), "not a checkpoint"),
    "JSON": (json.dumps({"a": 1}).encode(), "not a checkpoint"),
    "plain pickle": (b"\x80\x04}\x94.", "plain pickle of a dict"),
    "hostile pickle": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.", r"posix\.system"),
    "safetensors header alone": (struct.pack("<Q", 50) + b'{"a":', "truncated or damaged"),
    "zip magic alone": (b"PK\x03\x04" + bytes(50), "damaged zip archive"),
    "a HTML page": (b"<!DOCTYPE html><html>404</html>", "not a checkpoint"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(file)


@pytest.mark.parametrize("suffix", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    file = tmp_path / "model.pth"
    if suffix == "safetensors":
        save_file(network().state_dict(), file)
    else:
        torch.save(network().state_dict(), file, _use_new_zipfile_serialization=suffix == "zip")
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError):
        load(file)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(3), {}, {"state_dict": {"a": 1}}])
def test_torch_files_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="expected a state_dict"):
        load(tmp_path / "a.pt")


def test_folders_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match="Nothing was found"):
        load(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    torch.save(reference().state_dict(), tmp_path / "a" / "b" / "net.pt")
    with pytest.raises(CheckpointError, match=r"Name one of those below: a/b/net\.pt"):
        load(tmp_path)
    assert same_output(load(tmp_path / "a" / "b").net, reference())
    torch.save(reference().state_dict(), tmp_path / "a" / "b" / "other.pt")
    with pytest.raises(CheckpointError, match=r"net\.pt, other\.pt"):
        load(tmp_path / "a" / "b")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(reference().state_dict(), tmp_path / "a.pt")

    def locked(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(CheckpointError, match="Permission denied"):
        load(tmp_path / "a.pt")
