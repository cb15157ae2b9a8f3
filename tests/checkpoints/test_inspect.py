"""What `inspect` says of each format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mednext_edge.checkpoints import FORMATS, load, save
from mednext_edge.checkpoints.inspect import describe
from mednext_edge.checkpoints.keys import to_monai
from tests.checkpoints.writers import SMALL, network, write_nnunet_v1, write_nnunet_v2


def test_every_format_describes_itself(tmp_path: Path) -> None:
    v1, v2 = write_nnunet_v1(tmp_path / "1"), write_nnunet_v2(tmp_path / "2")
    torch.save(network().state_dict(), tmp_path / "bare.pt")
    save(tmp_path / "ours", load(v1), provenance={"seed": 3})
    found = {describe(path).format: describe(path) for path in (v1, v2, tmp_path / "bare.pt", tmp_path / "ours")}
    assert set(found) == set(FORMATS)
    parameters = sum(p.numel() for p in network().parameters())
    for name, inspection in found.items():
        assert inspection.description == FORMATS[name].description
        assert inspection.tensors == len(network().state_dict())
        assert inspection.tensor_parameters == parameters == inspection.task.model.parameters
        assert inspection.keys == "mic"
        assert inspection.deep_supervision
        assert inspection.down_expansion == "both"
        assert inspection.dtypes == (("float16",) if name == "mednext-edge" else ("float32",))
        assert type(inspection).model_validate_json(inspection.model_dump_json()).sha256 == inspection.sha256
    assert found["mednext-edge"].provenance == {"seed": 3}


def test_monai_names_and_mixed_types(tmp_path: Path) -> None:
    state = to_monai(network(replace(SMALL, deep_supervision=False)).state_dict())
    state["stem.bias"] = state["stem.bias"].half()
    torch.save(state, tmp_path / "a.pt")
    inspection = describe(tmp_path / "a.pt")
    assert inspection.keys == "monai"
    assert inspection.dtypes == ("float32", "float16")
    assert not inspection.deep_supervision
    assert inspection.task.model.parameters == inspection.tensor_parameters + 1  # MONAI has no dummy_tensor
