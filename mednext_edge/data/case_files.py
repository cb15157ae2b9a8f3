"""Which NIfTI files of a folder form a case, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mednext_edge.data.volume import SUFFIXES
from mednext_edge.errors import DataError

IMAGE_FOLDERS = ("imagesTr", "images", "image")
LABEL_FOLDERS = ("labelsTr", "labels", "label", "masks")
# nnU-Net's name of one channel of a case, without the suffix.
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class CaseFiles:
    """One image file, or one a channel, and the label file."""

    images: tuple[Path, ...]
    labels: Path


def stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), "")
    return path.name.removesuffix(suffix)


def nifti_files(folder: Path) -> list[Path]:
    """All NIfTI files of a folder but the hidden ones, sorted.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    return sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))


def group_channels(files: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Case name -> its files in channel order.

    `case_0000`, `case_0001`, ... are channels of one case (nnU-Net's naming); a number counts as a channel only
    where there is a `_0000`, so that names such as `patient_2021` remain cases of their own.

    Raises:
        DataError: a gap in the channel numbers, or one name twice.
    """
    by_stem = _unique(files)
    groups: dict[str, list[Path]] = {}
    for name, path in sorted(by_stem.items()):
        match = _CHANNEL.fullmatch(name)
        if match is None or f"{match['case']}_0000" not in by_stem:
            groups.setdefault(name, []).append(path)
            continue
        case = match["case"]
        if case in by_stem:
            raise DataError(f"{by_stem[case]} and {path} are both case `{case}`; keep one of them")
        channels = groups.setdefault(case, [])
        if int(match["channel"]) != len(channels):
            raise DataError(f"case `{case}` has {path.name} but no channel {len(channels):04d}")
        channels.append(path)
    return {name: tuple(channels) for name, channels in sorted(groups.items())}


def channels_of(path: Path) -> tuple[str, tuple[Path, ...]]:
    """The case that one image file belongs to: its name, and the files beside it that are its other channels."""
    match = _CHANNEL.fullmatch(stem(path))
    if match is not None:
        beside = [p for p in nifti_files(path.parent) if stem(p).startswith(match["case"])]
        for name, files in group_channels(beside).items():
            if path in files:
                return name, files
    return stem(path), (path,)


def image_and_label_folder(folder: Path) -> tuple[Path, Path]:
    """The sub-folders of images and of labels.

    Raises:
        DataError: one of them is not there.
    """
    images, labels = (
        next((folder / name for name in names if (folder / name).is_dir()), None)
        for names in (IMAGE_FOLDERS, LABEL_FOLDERS)
    )
    if images is None or labels is None:
        raise DataError(
            f"{folder} has neither dataset.json nor an image folder ({', '.join(IMAGE_FOLDERS)}) "
            f"beside a label folder ({', '.join(LABEL_FOLDERS)})"
        )
    return images, labels


def pair(images: Path, labels: Path) -> dict[str, CaseFiles]:
    """Cases of an image folder and a label folder, by name.

    Raises:
        DataError: no such folder, nothing in it, an image without a label, a label without an image.
    """
    image_files = group_channels(nifti_files(images))
    label_files = _unique(nifti_files(labels))
    if not image_files and not label_files:
        raise DataError(f"{images} and {labels} hold no NIfTI file ({', '.join(SUFFIXES)})")
    for here, there, what, other in (
        (image_files.keys(), label_files.keys(), f"images in {images}", f"label in {labels}"),
        (label_files.keys(), image_files.keys(), f"labels in {labels}", f"image in {images}"),
    ):
        alone = sorted(here - there)
        if alone:
            raise DataError(f"{len(alone)} {what} have no {other}; the first is `{alone[0]}`")
    return {name: CaseFiles(files, label_files[name]) for name, files in image_files.items()}


def _unique(files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        name = stem(path)
        if name in found:
            raise DataError(f"{found[name]} and {path} are both case `{name}`; keep one of them")
        found[name] = path
    return found
