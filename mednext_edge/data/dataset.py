"""Labelled data sets and folders of images: which files form a case, which cases validate.

Read are the layouts of the Medical Segmentation Decathlon and of nnU-Net (v1 and v2 raw), and plain
pairs of folders. Only names are looked at here; voxels are read when a case is asked for them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mednext_edge.data.volume import SUFFIXES, Volume, image_channels, label_values, read_image, read_labels
from mednext_edge.errors import DataError
from mednext_edge.registry import unknown_name

DEMO_PREFIX = "demo:"
IMAGE_FOLDERS = ("imagesTr", "images", "image")
LABEL_FOLDERS = ("labelsTr", "labels", "label", "masks")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
FOLDS = 5
SPLIT_SEED = 12345


@dataclass(frozen=True)
class Case:
    """One image, and its labels where they are known; each call reads the files again.

    Attributes:
        name: file name without suffix and channel number.
        image: -> image [C, Z, Y, X] float32.
        labels: -> label map [Z, Y, X]; None for an image alone.
    """

    name: str
    image: Callable[[], Volume]
    labels: Callable[[], Volume] | None = None


@dataclass(frozen=True)
class Dataset:
    """Cases with one set of labels and channels.

    Attributes:
        name: of the data set.
        training, validation: disjoint; `validation` is empty where there is but one case.
        labels: name to value, background included.
        channels: names, in the order of the image's first axis.
    """

    name: str
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    labels: dict[str, int]
    channels: tuple[str, ...]


@dataclass(frozen=True)
class _Files:
    """The files of one case."""

    images: tuple[Path, ...]
    labels: Path


def open_dataset(where: str | Path) -> Dataset:
    """A data set by its place.

    Args:
        where: a folder with `dataset.json` (Medical Segmentation Decathlon, nnU-Net v1 or v2 raw), a folder
            with an image and a label sub-folder of NIfTI files, `IMAGES,LABELS` for two folders anywhere,
            or the name of a shipped data set, such as `demo:brain-tissue`.

    Where the data names no validation cases, they are fold 0 of nnU-Net's five-fold split.

    Raises:
        DataError: nothing there, a broken or incomplete dataset.json, missing files, images without labels
            or labels without images, labels that are regions.
        UnknownNameError: a `demo:` name that does not exist.
    """
    text = str(where)
    if text.startswith(DEMO_PREFIX):
        return _demo(text.removeprefix(DEMO_PREFIX))
    path = Path(where).expanduser()
    if path.name == "dataset.json" and path.is_file():
        path = path.parent
    if path.is_dir():
        if (path / "dataset.json").is_file():
            return _from_description(path, _load_json(path / "dataset.json"))
        return _from_folders(path.resolve().name, *_sub_folders(path))
    if text.count(",") == 1:
        images, labels = (Path(part.strip()).expanduser() for part in text.split(","))
        for folder in (images, labels):
            if not folder.is_dir():
                raise DataError(f"no such folder: {folder} (the data was given as `IMAGES,LABELS`)")
        return _from_folders(images.resolve().parent.name, images, labels)
    raise DataError(f"no such folder: {path}; expected one with dataset.json, or two folders as `IMAGES,LABELS`")


def list_images(where: str | Path) -> tuple[Case, ...]:
    """The cases to predict in a folder of NIfTI files, or the one that a file belongs to; labels are None.

    Files named `case_0000.nii.gz`, `case_0001.nii.gz`, ... are the channels of one case (nnU-Net's naming);
    any other file is a case of its own.

    Raises:
        DataError: no such path, no NIfTI file in it, a gap in the channel numbers, one name twice.
    """
    path = Path(where).expanduser()
    if path.is_file():
        match = _CHANNEL.fullmatch(_stem(path))
        groups = _group_channels(_nifti_files(path.parent)) if match else {}
        name, files = next(((n, f) for n, f in groups.items() if path in f), (_stem(path), (path,)))
        return (Case(name, partial(read_image, files)),)
    files_here = _nifti_files(path)
    if not files_here:
        raise DataError(f"{path} holds no NIfTI file ({', '.join(SUFFIXES)})")
    return tuple(Case(name, partial(read_image, files)) for name, files in _group_channels(files_here).items())


def split_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Training and validation names: fold 0 of nnU-Net's KFold(5, shuffle, seed 12345) over the sorted names.

    With fewer than five names there are as many folds as names; one name alone trains.
    """
    keys = sorted(names)
    if len(keys) < 2:
        return keys, []
    folds = min(FOLDS, len(keys))
    order = np.arange(len(keys))
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    held = {int(i) for i in order[: -(-len(keys) // folds)]}
    return [k for i, k in enumerate(keys) if i not in held], [k for i, k in enumerate(keys) if i in held]


def _demo(name: str) -> Dataset:
    if name == "brain-tissue":
        from mednext_edge.data.brain_tissue import brain_tissue

        return brain_tissue()
    if name == "hippocampus":
        raise DataError(
            "the images of demo:hippocampus are not shipped; get Task04_Hippocampus of the Medical Segmentation "
            "Decathlon and give its folder instead"
        )
    raise unknown_name("data set", DEMO_PREFIX + name, [DEMO_PREFIX + "brain-tissue"])


# --- files -----------------------------------------------------------------------------------------


def _stem(path: Path) -> str:
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), "")
    return path.name.removesuffix(suffix)


def _nifti_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    return sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))


def _unique(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in files:
        if name in found:
            raise DataError(f"{found[name]} and {path} are both case `{name}`; keep one of them")
        found[name] = path
    return found


def _group_channels(files: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Case name -> its files in channel order. Numbers count as channels only where `_0000` exists."""
    by_stem = _unique((_stem(path), path) for path in files)
    groups: dict[str, list[Path]] = {}
    for stem, path in by_stem.items():
        match = _CHANNEL.fullmatch(stem)
        if match is None or f"{match['case']}_0000" not in by_stem:
            groups.setdefault(stem, []).append(path)
            continue
        if match["case"] in by_stem:
            raise DataError(f"{by_stem[match['case']]} and {path} are both case `{match['case']}`; keep one of them")
        members = groups.setdefault(match["case"], [])
        if int(match["channel"]) != len(members):
            raise DataError(f"case `{match['case']}` has {path.name} but no channel {len(members):04d}")
        members.append(path)
    return {name: tuple(members) for name, members in sorted(groups.items())}


def _sub_folders(folder: Path) -> tuple[Path, Path]:
    found = [
        next((folder / n for n in names if (folder / n).is_dir()), None) for names in (IMAGE_FOLDERS, LABEL_FOLDERS)
    ]
    images, labels = found
    if images is None or labels is None:
        raise DataError(
            f"{folder} has neither dataset.json nor an image folder ({', '.join(IMAGE_FOLDERS)}) "
            f"beside a label folder ({', '.join(LABEL_FOLDERS)})"
        )
    return images, labels


def _pair(images: Path, labels: Path) -> dict[str, _Files]:
    """Cases of an image folder and a label folder, by name."""
    image_files = _group_channels(_nifti_files(images))
    label_files = _unique((_stem(path), path) for path in _nifti_files(labels))
    if not image_files and not label_files:
        raise DataError(f"{images} and {labels} hold no NIfTI file ({', '.join(SUFFIXES)})")
    for here, there, what, other in (
        (image_files.keys(), label_files.keys(), f"images in {images}", f"label in {labels}"),
        (label_files.keys(), image_files.keys(), f"labels in {labels}", f"image in {images}"),
    ):
        alone = sorted(here - there)
        if alone:
            raise DataError(f"{len(alone)} {what} have no {other}; the first is `{alone[0]}`")
    return {name: _Files(files, label_files[name]) for name, files in image_files.items()}


# --- without dataset.json --------------------------------------------------------------------------


def _from_folders(name: str, images: Path, labels: Path) -> Dataset:
    """Two folders: the label values are those that occur in the label files, all of which are read."""
    cases = _pair(images, labels)
    values = {0}
    for files in cases.values():
        values.update(label_values(read_labels(files.labels).array))
    count = _channel_count(cases)
    label_names = {"background" if value == 0 else f"label-{value}": value for value in sorted(values)}
    return _assemble(name, cases, split_names(cases), label_names, tuple(f"channel-{i}" for i in range(count)))


def _channel_count(cases: Mapping[str, _Files]) -> int:
    counts = {name: image_channels(files.images) for name, files in cases.items()}
    first, count = next(iter(counts.items()))
    odd = next((name for name, n in counts.items() if n != count), None)
    if odd is not None:
        raise DataError(
            f"case `{odd}` has {counts[odd]} channels, case `{first}` has {count}; expected the same number"
        )
    return count


# --- dataset.json ----------------------------------------------------------------------------------


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected an object with labels and channel names")
    return content


def _from_description(folder: Path, content: dict[str, Any]) -> Dataset:
    where = folder / "dataset.json"
    labels = _labels(where, content)
    channels = _channels(where, content)
    ending = content.get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        raise DataError(f"{where}: file_ending is `{ending}`; expected {' or '.join(SUFFIXES)}")
    training = _listed(folder, content, len(channels))
    if training is None:
        training = _pair(folder / IMAGE_FOLDERS[0], folder / LABEL_FOLDERS[0])
    if not training:
        raise DataError(f"{where} lists no training case")
    split, cases = _validation(folder, content, training, len(channels))
    missing = [p for files in cases.values() for p in (*files.images, files.labels) if not p.is_file()]
    if missing:
        raise DataError(f"{where}: {len(missing)} of the listed files are missing; the first is {missing[0]}")
    for name, files in cases.items():
        # One file may hold all channels as a 4-D image; that shows only when it is read.
        if len(files.images) not in (1, len(channels)):
            raise DataError(
                f"case `{name}` has {len(files.images)} image files; {where} names {len(channels)} channels"
            )
    return _assemble(str(content.get("name", folder.resolve().name)), cases, split, labels, channels)


def _labels(where: Path, content: dict[str, Any]) -> dict[str, int]:
    """`labels` in either direction: {"background": 0} (nnU-Net v2) or {"0": "background"} (MSD, nnU-Net v1)."""
    given = content.get("labels")
    if not isinstance(given, dict) or not given:
        raise DataError(f"{where} has no `labels` object")
    found: dict[str, int] = {}
    for key, value in given.items():
        if isinstance(value, list):
            raise DataError(f"{where}: label `{key}` is a region {value}; region-based labels are not supported")
        if isinstance(value, str) and key.isdecimal():
            name, number = value, int(key)
        elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            name, number = key, value
        else:
            raise DataError(f'{where}: label `{key}: {value}` is neither "name": value nor "value": "name"')
        if name in found or number in found.values():
            raise DataError(f"{where}: label `{name}` or its value {number} is there twice")
        found[name] = number
    if "ignore" in found:
        raise DataError(f"{where} has an `ignore` label; partly labelled images are not supported")
    if 0 not in found.values():
        raise DataError(f"{where}: no label has the value 0; expected one, the background")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _channels(where: Path, content: dict[str, Any]) -> tuple[str, ...]:
    given = content.get("channel_names", content.get("modality"))
    if not isinstance(given, dict) or sorted(given) != sorted(str(i) for i in range(len(given))) or not given:
        raise DataError(
            f'{where}: expected `channel_names` (or `modality`) as {{"0": "name", "1": ...}}, found {given}'
        )
    return tuple(str(given[str(i)]) for i in range(len(given)))


def _inside(folder: Path, entry: object) -> Path:
    """A path of dataset.json, which must stay in the folder. Links that lie in the folder may lead out of it."""
    if not isinstance(entry, str) or not entry:
        raise DataError(f"{folder / 'dataset.json'}: expected a file name, found {entry!r}")
    relative = os.path.normpath(entry.replace("\\", "/"))
    if Path(relative).is_absolute() or relative.split("/")[0] in ("..", "."):
        raise DataError(f"{folder / 'dataset.json'}: `{entry}` is not inside the data set's folder")
    return folder / relative


def _image_files(folder: Path, entry: object, channels: int) -> tuple[Path, ...]:
    if isinstance(entry, list):
        return tuple(_inside(folder, e) for e in entry)
    path = _inside(folder, entry)
    if path.is_file():
        return (path,)
    # nnU-Net v1 lists the case's name, while one file a channel lies in the folder.
    suffix = path.name[len(_stem(path)) :]
    numbered = tuple(path.with_name(f"{_stem(path)}_{c:04d}{suffix}") for c in range(channels))
    return numbered if numbered[0].is_file() else (path,)


def _entry(folder: Path, entry: object, channels: int) -> tuple[str, _Files]:
    if not isinstance(entry, dict) or "image" not in entry or "label" not in entry:
        raise DataError(f'{folder / "dataset.json"}: expected {{"image": ..., "label": ...}}, found {entry}')
    label = _inside(folder, entry["label"])
    return _stem(label), _Files(_image_files(folder, entry["image"], channels), label)


def _listed(folder: Path, content: dict[str, Any], channels: int) -> dict[str, _Files] | None:
    """The cases that dataset.json lists; None where it leaves that to the folder."""
    entries = content.get("training")
    if entries is None and isinstance(content.get("dataset"), dict):
        entries = [{"image": e.get("images"), "label": e.get("label")} for e in content["dataset"].values()]
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise DataError(f"{folder / 'dataset.json'}: `training` is a {type(entries).__name__}; expected a list")
    cases: dict[str, _Files] = {}
    for entry in entries:
        name, files = _entry(folder, entry, channels)
        if name in cases:
            raise DataError(f"{folder / 'dataset.json'}: case `{name}` is listed twice")
        cases[name] = files
    return cases


def _validation(
    folder: Path, content: dict[str, Any], training: dict[str, _Files], channels: int
) -> tuple[tuple[list[str], list[str]], dict[str, _Files]]:
    """(training names, validation names), and all cases by name."""
    entries = content.get("validation")
    if not entries:
        return split_names(training), training
    if not isinstance(entries, list):
        raise DataError(f"{folder / 'dataset.json'}: `validation` is a {type(entries).__name__}; expected a list")
    cases = dict(training)
    held: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            name = _stem(Path(entry))
            if name not in training:
                label = re.sub(r"(^|/)image", r"\1label", entry)
                if label == entry or not _inside(folder, label).is_file():
                    raise DataError(f"{folder / 'dataset.json'}: validation image `{entry}` has no label file")
                name, cases[name] = _entry(folder, {"image": entry, "label": label}, channels)
        else:
            name, files = _entry(folder, entry, channels)
            if name in training and training[name] != files:
                raise DataError(f"{folder / 'dataset.json'}: `{name}` is a training and another validation case")
            cases[name] = files
        if name in held:
            raise DataError(f"{folder / 'dataset.json'}: validation case `{name}` is listed twice")
        held.append(name)
    kept = [name for name in training if name not in set(held)]
    if not kept:
        raise DataError(f"{folder / 'dataset.json'}: every training case is a validation case too")
    return (kept, held), cases


# --- cases -----------------------------------------------------------------------------------------


def _known_labels(path: Path, labels: Mapping[str, int]) -> Volume:
    volume = read_labels(path)
    strange = sorted(label_values(volume.array) - set(labels.values()))
    if strange:
        raise DataError(f"{path} holds the labels {strange}; the data set names only {dict(labels)}")
    return volume


def _assemble(
    name: str,
    files: Mapping[str, _Files],
    split: tuple[Sequence[str], Sequence[str]],
    labels: dict[str, int],
    channels: tuple[str, ...],
) -> Dataset:
    training, validation = (
        tuple(
            Case(n, partial(read_image, files[n].images), partial(_known_labels, files[n].labels, labels)) for n in part
        )
        for part in split
    )
    return Dataset(name, training, validation, labels, channels)
