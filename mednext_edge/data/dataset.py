"""Labelled data sets and folders of images to predict.

Read are the layouts of the Medical Segmentation Decathlon and of nnU-Net (v1 and v2 raw), and plain
pairs of folders. Opening looks at names alone; voxels are read when a case is asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mednext_edge.data.case_files import channels_of, group_channels, image_and_label_folder, nifti_files, pair
from mednext_edge.data.dataset_json import Description, read_description
from mednext_edge.data.dicom import find_series, read_series
from mednext_edge.data.raster import RASTER_SUFFIXES, is_raster
from mednext_edge.data.volume import SUFFIXES, Volume, image_channels, label_values, read_image, read_labels
from mednext_edge.errors import DataError
from mednext_edge.registry import unknown_name
from mednext_edge.task import Region

DEMO_PREFIX = "demo:"
DICOM_SUFFIX = ".dcm"
# nnU-Net's cross-validation.
_FOLDS = 5
_SPLIT_SEED = 12345


@dataclass(frozen=True)
class Case:
    """One image, and its labels where they are known; each call reads the files again.

    Attributes:
        name: file name without suffix and channel number.
        image: -> image [C, Z, Y, X] float32.
        labels: -> label map [Z, Y, X]; None for an image alone.
        category: the class of the whole image, in a classification.
        output: name of the format that suits label maps of this image, see `data.outputs`.
        files: of the image and of its labels, for what is said to people; empty where there are none of its own.
    """

    name: str
    image: Callable[[], Volume]
    labels: Callable[[], Volume] | None = None
    category: int | None = None
    output: str = "nifti"
    files: tuple[Path, ...] = ()

    @contextmanager
    def named(self, use: str) -> Iterator[None]:
        """What is wrong with the data inside is said of this case: its use, such as `training`, its name, its files.

        Raises:
            DataError: as inside; it keeps its words where they name one of the files.
        """
        try:
            yield
        except DataError as error:
            if any(str(file) in str(error) for file in self.files):
                raise
            where = f" ({', '.join(map(str, self.files))})" if self.files else ""
            raise DataError(f"{use} case {self.name}{where}: {error}") from error


@dataclass(frozen=True)
class Dataset:
    """Cases with one set of labels and channels.

    Attributes:
        name: of the data set.
        training, validation: disjoint; `validation` is empty where there is but one case.
        labels: name to value, background included.
        regions: where labels are unions of values, these (nnU-Net's region-based training); empty elsewhere.
        channels: names, in the order of the image's first axis.
        kind: whether pixels or whole images have labels.
        colour: of photographs and their like, whose channels can be brought to a network's; None for measured values.
        notes: what was left out on opening.
    """

    name: str
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    labels: dict[str, int]
    channels: tuple[str, ...]
    kind: Literal["segmentation", "classification"] = "segmentation"
    colour: Literal["RGB", "grey"] | None = None
    notes: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()


def open_dataset(where: str | Path) -> Dataset:
    """A data set by its place.

    Args:
        where: a folder with `dataset.json` (Medical Segmentation Decathlon, nnU-Net v1 or v2 raw), a folder
            with an image and a label sub-folder of NIfTI files, or one of raster images (`raster_sets`: images and
            masks, training and validation folders of these, or a folder for each class), a JSON file that describes
            any other set of raster images, `IMAGES,LABELS` for two folders anywhere, or the name of a shipped data
            set, such as `demo:brain-tissue`.

    Where the data names no validation cases, they are fold 0 of nnU-Net's five-fold split. Without dataset.json
    the label values are those that occur, for which all label files are read.

    Raises:
        DataError: nothing there, a broken or incomplete dataset.json, missing files, images without labels
            or labels without images. A case's `labels` raises it for values that the data set does not name.
        UnknownNameError: a `demo:` name that does not exist.
    """
    from mednext_edge.data.raster_sets import described, open_raster_folder, open_raster_pair

    text = str(where)
    if text.startswith(DEMO_PREFIX):
        return _demo(text)
    path = Path(where).expanduser()
    if path.name == "dataset.json" and path.is_file():
        path = path.parent
    if path.is_dir():
        if (path / "dataset.json").is_file():
            return _assemble(read_description(path))
        raster = open_raster_folder(path)
        return raster or _assemble(_describe_folders(path.resolve().name, *image_and_label_folder(path)))
    if path.suffix == ".json" and path.is_file():
        return described(path)
    if text.count(",") == 1:
        images, labels = (Path(part.strip()).expanduser() for part in text.split(","))
        raster = open_raster_pair(images, labels)
        if raster is not None:
            return raster
        return _assemble(_describe_folders(images.resolve().parent.name, images, labels))
    raise DataError(f"no such folder: {path}; expected one with dataset.json, or two folders as IMAGES,LABELS")


def list_images(where: str | Path) -> tuple[Case, ...]:
    """The cases to predict in a folder, or the one that a single file belongs to; labels are None.

    A folder's NIfTI files come first; where there are none its raster images, and where there are none of these the
    DICOM series in it and its sub-folders, each a case of one channel whose volume is a `DicomVolume`.

    Files named `case_0000.nii.gz`, `case_0001.nii.gz`, ... are the channels of one case (nnU-Net's naming);
    any other file is a case of its own.

    Raises:
        DataError: no such path, no image in it, a gap in the channel numbers, one name twice.
        TargetUnavailableError: there is DICOM alone, and pydicom is not installed.
    """
    from mednext_edge.data.raster_sets import raster_cases

    path = Path(where).expanduser()
    if path.is_file() and path.suffix.lower() in RASTER_SUFFIXES:
        return raster_cases([path])
    if path.is_file() and path.suffix.lower() == DICOM_SUFFIX:
        return (Case(path.stem, partial(read_series, (path,))),)
    cases = dict([channels_of(path)]) if path.is_file() else group_channels(nifti_files(path))
    if cases:
        return tuple(Case(name, partial(read_image, files)) for name, files in cases.items())
    rasters = [file for file in sorted(path.iterdir()) if is_raster(file)]
    if rasters:
        return raster_cases(rasters)
    series = find_series(path)
    if not series:
        known = ", ".join((*SUFFIXES, *RASTER_SUFFIXES))
        raise DataError(f"{path} holds no image ({known}) and no DICOM image series")
    return tuple(Case(name, partial(read_series, files)) for name, files in series.items())


def holds_images(folder: Path) -> bool:
    """Whether images lie in a folder itself, not in folders below it."""
    return bool(nifti_files(folder)) or any(is_raster(path) for path in folder.iterdir())


def validation_names(names: Iterable[str]) -> tuple[str, ...]:
    """Fold 0 of nnU-Net's KFold(5, shuffle, seed 12345) over the sorted names.

    With fewer than five names there are as many folds as names; a single name is for training.
    """
    keys = sorted(names)
    if len(keys) < 2:
        return ()
    order = np.arange(len(keys))
    np.random.RandomState(_SPLIT_SEED).shuffle(order)
    held = -(-len(keys) // min(_FOLDS, len(keys)))
    return tuple(keys[i] for i in sorted(order[:held]))


def _demo(name: str) -> Dataset:
    if name == "demo:brain-tissue":
        from mednext_edge.data.brain_tissue import brain_tissue

        return brain_tissue()
    if name == "demo:hippocampus":
        raise DataError(
            "the images of demo:hippocampus are not shipped; get Task04_Hippocampus of the Medical Segmentation "
            "Decathlon and give its folder instead"
        )
    raise unknown_name("data set", name, ["demo:brain-tissue"])


def _describe_folders(name: str, images: Path, labels: Path) -> Description:
    cases = pair(images, labels)
    values = {0}
    for files in cases.values():
        values |= label_values(read_labels(files.labels).array)
    counts = {case: image_channels(files.images) for case, files in cases.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"found images of different channel counts in {images}: {counts}; expected the same everywhere")
    (channels,) = set(counts.values())
    return Description(
        name=name,
        cases=cases,
        validation=None,
        labels={"background" if value == 0 else f"label-{value}": value for value in sorted(values)},
        channels=tuple(f"channel-{i}" for i in range(channels)),
    )


def _assemble(description: Description) -> Dataset:
    held = description.validation
    if held is None:
        held = validation_names(description.cases)

    def case(name: str) -> Case:
        files = description.cases[name]
        return Case(
            name,
            partial(_known_channels, files.images, description.channels),
            partial(_known_labels, files.labels, dict(description.labels)),
            files=(*files.images, files.labels),
        )

    return Dataset(
        name=description.name,
        training=tuple(case(name) for name in description.cases if name not in set(held)),
        validation=tuple(case(name) for name in held),
        labels=description.labels,
        channels=description.channels,
        regions=description.regions,
    )


def _known_channels(paths: Sequence[Path], channels: tuple[str, ...]) -> Volume:
    volume = read_image(paths)
    if len(volume.array) != len(channels):
        raise DataError(
            f"{paths[0]} holds an image of {len(volume.array)} channels; expected {len(channels)}, those that the data "
            f"set names ({', '.join(channels)}). Correct its channel_names or modality, or give the image its channels"
        )
    return volume


def _known_labels(path: Path, labels: Mapping[str, int]) -> Volume:
    volume = read_labels(path)
    strange = sorted(label_values(volume.array) - set(labels.values()))
    if strange:
        raise DataError(
            f"{path} holds the labels {strange}; expected those that the data set names, {dict(labels)}. "
            "Correct the label map, or name the labels in dataset.json"
        )
    return volume
