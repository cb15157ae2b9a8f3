"""UpKern against linear interpolation written out as matrices, on whole networks, and from checkpoints."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mednext_edge.checkpoints import load, save
from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import CheckpointError
from mednext_edge.models.families import build
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.training.upkern import resample_kernel, upkern, upkern_from

from .blobs import task_for


def interpolation(old: int, new: int) -> NDArray[np.float64]:
    """[new, old]: voxel i of the new grid has its centre at (i + 1/2) old / new - 1/2 of the old one."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        below = min(int(centre), old - 2)
        matrix[i, below] += 1 - (centre - below)
        matrix[i, below + 1] += centre - below
    return matrix


def by_matrices(kernel: Tensor, size: tuple[int, ...]) -> NDArray[np.float64]:
    result = kernel.double().numpy()
    for axis, new in enumerate(size, start=2):
        letters = string.ascii_lowercase[: result.ndim]
        out = letters.replace(letters[axis], "z")
        result = np.einsum(f"z{letters[axis]},{letters}->{out}", interpolation(result.shape[axis], new), result)
    return result


def network(dataset: Dataset, seed: int = 0, **changes: object) -> LoadedModel:
    task = task_for(dataset, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(task.model)
    return LoadedModel(net.eval(), task, Source(format="test", file="small.pth", sha256=""))


def kernels(size: int) -> dict[str, int]:
    return {"encoder_kernel": size, "decoder_kernel": size}


def test_the_measured_taps() -> None:
    taps = resample_kernel(torch.tensor([[[1.0, 2.0, 3.0]]]), (5,))
    torch.testing.assert_close(taps, torch.tensor([[[1.0, 1.4, 2.0, 2.6, 3.0]]]))
    ones = resample_kernel(torch.ones(2, 1, 3, 3, 3), (5, 5, 5))
    torch.testing.assert_close(ones, torch.ones(2, 1, 5, 5, 5))  # no re-scaling: the sum grows 4.63 times


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("old", "new"), [(3, 5), (3, 7), (5, 7), (5, 3)])
@pytest.mark.parametrize("grn", [False, True])
def test_every_tensor_of_a_network(dataset: Dataset, dims: int, old: int, new: int, grn: bool) -> None:
    source = network(dataset, seed=1, spatial_dims=dims, grn=grn, **kernels(old)).net
    target = network(dataset, seed=2, spatial_dims=dims, grn=grn, **kernels(new)).net
    done = upkern(target, source)
    small, large = source.state_dict(), target.state_dict()
    assert not done.kept
    assert set(done.resampled) | set(done.copied) == set(large)
    # Of every block, and of the down and up blocks alike, the depthwise convolution and nothing else.
    assert set(done.resampled) == {name for name in large if name.endswith("conv1.weight")}
    assert {name.split(".")[0] for name in done.resampled} >= {"down_0", "up_1", "bottleneck", "enc_block_0"}
    for name in done.copied:
        assert torch.equal(large[name], small[name]), name
    for name in done.resampled:
        np.testing.assert_allclose(large[name].numpy(), by_matrices(small[name], (new,) * dims), rtol=1e-5, atol=1e-7)


def test_separate_kernels_of_encoder_and_decoder(dataset: Dataset) -> None:
    source, target = network(dataset, encoder_kernel=3, decoder_kernel=3), network(dataset, decoder_kernel=5, seed=1)
    done = upkern(target.net, source.net)
    assert {name.split(".")[0] for name in done.resampled} == {
        "bottleneck",
        "dec_block_0",
        "dec_block_1",
        "up_0",
        "up_1",
    }
    assert torch.equal(target.net.get_parameter("down_0.conv1.weight"), source.net.get_parameter("down_0.conv1.weight"))


def test_state_dicts_of_several_processes_and_missing_heads(dataset: Dataset) -> None:
    source = network(dataset, deep_supervision=False).net
    target = network(dataset, seed=1, **kernels(5)).net
    heads = {name: t.clone() for name, t in target.state_dict().items() if name.startswith(("out_1", "out_2"))}
    done = upkern(target, {f"module.{name}": tensor for name, tensor in source.state_dict().items()})
    assert set(done.kept) == set(heads) and heads
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in heads.items())


def test_from_a_checkpoint_in_float16(dataset: Dataset, tmp_path: Path) -> None:
    source = network(dataset)
    save(tmp_path / "small", source)
    target = network(dataset, seed=1, **kernels(5)).net
    done = upkern_from(target, load(tmp_path / "small"))
    assert len(done.resampled) == 9
    stored = source.net.get_parameter("up_0.conv1.weight").half().float().detach()
    found = target.get_parameter("up_0.conv1.weight").detach()
    np.testing.assert_allclose(found.numpy(), by_matrices(stored, (5, 5, 5)), rtol=1e-5, atol=1e-7)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"classes": 5}, r"out_0\.conv_out\.weight"),
        ({"in_channels": 2}, r"stem\.weight"),
        ({"channels": 8}, r"stem\.weight"),
        ({"expansion": (3, 2, 2, 2, 2)}, r"enc_block_0\.0\.conv2\.weight"),
        ({"spatial_dims": 2}, r"stem\.weight"),
    ],
)
def test_other_channels_are_named_by_key(dataset: Dataset, changes: dict[str, object], named: str) -> None:
    target = network(dataset, seed=1, **kernels(5)).net
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"small\.pth: UpKern: `{named}` has shape .* is needed"):
        upkern_from(target, network(dataset, **changes))
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": (2, 1, 1, 1, 1)}, r"`enc_block_0\.1\.conv1\.bias`, which is only in the source"),
        ({"grn": True}, "only in the source"),
        ({"residual_resample": False}, r"`down_0\.res_conv\.bias`, which is not in the source"),
    ],
)
def test_another_network_is_refused(dataset: Dataset, changes: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"UpKern from small\.pth: .*{words}.*same variant"):
        upkern_from(network(dataset, **kernels(5)).net, network(dataset, **changes))


def test_the_published_small_variant(dataset: Dataset) -> None:
    """S k3 -> S k5: the 26 depthwise kernels, and a network that still computes."""
    from mednext_edge.models.config import mednext_config

    with torch.random.fork_rng():
        torch.manual_seed(0)
        small, large = (MedNeXt(mednext_config("S", classes=3, kernel=k)).eval() for k in (3, 5))
    assert len(upkern(large, small).resampled) == 26
    with torch.no_grad():
        assert torch.isfinite(large(torch.ones(1, 1, 32, 32, 32))).all()
