"""Data sets of raster images: with masks for segmentation, in one folder a class for classification.

Layouts that say it all by their names are read as they are; any other is described in a JSON file of its own
(`RasterSet`), which may lie anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.duplicates import later_copies
from mednext_edge.data.raster import (
    THRESHOLD,
    is_raster,
    raster_channels,
    raster_size,
    read_masks,
    read_raster,
)
from mednext_edge.data.splits import Split, natural
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.task import Frozen

IMAGES = ("images", "image", "imgs")
MASKS = ("masks", "mask", "groundtruth", "gt", "segmentations")
TRAINING, VALIDATION = ("train", "training"), ("validation", "val", "valid")
CHANNELS = {1: ("luminance",), 3: ("red", "green", "blue")}
# How the name of a mask continues that of its image.
_MASK = re.compile(r"(?P<image>.+?)[_ -](?:mask|segmentation|seg|groundtruth|gt)(?:[_ -]\d+)?", re.IGNORECASE)
_LOOKED_AT = 25
LABEL_FORMAT = "png"


class Folders(Frozen):
    """Images, and their masks beside them; paths below the set's root."""

    images: str
    masks: str


class RasterSet(Frozen):
    """A data set of raster images, described in a JSON file; with `folders` or with `classes`.

    Attributes:
        root: absolute, or from the folder of the JSON file.
        folders: of a segmentation. A mask has the name of its image, or continues it (`NAME_mask`,
            `NAME_mask_1`, `NAME_segmentation`); several masks of an image are joined.
        classes: of a classification: name of each class -> its folder.
        foreground: what the masks show.
        threshold: a mask is what is brighter, of 0..255.
        stretch_masks: masks have other sizes than their images, which were stretched after they were drawn.
        deduplicate: leave out images that are near copies of others.
        split: which cases validate.
        channels: 1 or 3; None looks at the images.
    """

    name: str = Field(min_length=1)
    root: str = "."
    folders: tuple[Folders, ...] = ()
    classes: dict[str, str] = Field(default_factory=dict)
    foreground: str = "foreground"
    threshold: float = THRESHOLD
    stretch_masks: bool = False
    deduplicate: bool = False
    split: Split = Split()
    channels: Literal[1, 3] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> RasterSet:
        if bool(self.folders) == bool(self.classes):
            raise ValueError("expected `folders` with images and masks, or `classes` with a folder each")
        if len(self.classes) == 1:
            raise ValueError(f"found the class {next(iter(self.classes))} alone; expected two at least")
        return self


@dataclass(frozen=True)
class _Group:
    """Cases of one folder, which are split among themselves; `held` says on which side they are where the data does."""

    name: str
    cases: tuple[Case, ...]
    held: bool | None = None


def described(file: Path) -> Dataset:
    """The data set that a JSON file describes.

    Raises:
        DataError: not such a description, a folder that is not there or empty, or images and masks that do not match.
    """
    try:
        content = RasterSet.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(f"{file} describes no data set of raster images: {reason}") from error
    root = (file.resolve().parent / Path(content.root).expanduser()).resolve()

    def below(folder: str) -> Path:
        path = (root / folder).resolve()
        if not path.is_relative_to(root):
            raise DataError(f"{file} names the folder {folder}, which is not below {root}")
        return path

    if content.classes:
        folders = {name: below(folder) for name, folder in content.classes.items()}
        return _classification(content, folders)
    groups = [
        _Group(Path(one.images).name, _pairs(raster_files(below(one.images)), raster_files(below(one.masks)), content))
        for one in content.folders
    ]
    return _segmentation(content, groups)


def open_raster_folder(folder: Path) -> Dataset | None:
    """The data set of a folder whose sub-folders' names say what they are; None where they do not.

    Read are an image and a mask folder; training and validation folders with these in them; and a folder for each
    class. Of classes the last fifth of each, by number, validates: neighbours are often of one patient.

    Raises:
        DataError: images and masks that do not match, or a class without images.
    """
    content = RasterSet.model_construct(name=folder.resolve().name, split=Split())
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if groups := [_Group(folder.name, cases)] if (cases := _masked(inside, content)) else _halves(inside, content):
        return _segmentation(content, groups)
    classes = {path.name: path for path in inside.values()}
    if len(classes) > 1 and any(_holds_rasters(path) for path in classes.values()):
        by_number = content.model_copy(update={"split": Split(by="range")})
        return _classification(by_number, dict(sorted(classes.items())))
    return None


def open_raster_pair(images: Path, masks: Path) -> Dataset | None:
    """Two folders of images and masks, with sub-folders; None where the first holds no raster image.

    Raises:
        DataError: images and masks that do not match.
    """
    files = raster_files(images) if images.is_dir() else []
    if not files:
        return None
    content = RasterSet.model_construct(name=images.resolve().parent.name, split=Split())
    return _segmentation(content, [_Group(images.name, _pairs(files, raster_files(masks), content))])


def raster_files(folder: Path) -> list[Path]:
    """All raster images of a folder and those below it, in the order of their numbers.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    found = {str(path): path for path in folder.rglob("*") if is_raster(path)}
    return [found[name] for name in natural(found)]


def raster_cases(files: Iterable[Path]) -> tuple[Case, ...]:
    """Images to predict, in the order of their numbers.

    Raises:
        DataError: one name twice.
    """
    found = _by_stem(files)
    return tuple(Case(name, partial(read_raster, found[name]), output=LABEL_FORMAT) for name in natural(found))


def _holds_rasters(folder: Path) -> bool:
    return any(is_raster(path) for path in folder.iterdir())


def _masked(inside: Mapping[str, Path], content: RasterSet) -> tuple[Case, ...]:
    """Cases of an image and a mask folder among these; none where they are not there or hold other files."""
    images, masks = (next((inside[name] for name in names if name in inside), None) for names in (IMAGES, MASKS))
    if images is None or masks is None or not (files := raster_files(images)):
        return ()
    return _pairs(files, raster_files(masks), content)


def _halves(inside: Mapping[str, Path], content: RasterSet) -> list[_Group]:
    """Training and validation folders; what is for tests is left alone."""
    groups = []
    for names, held in ((TRAINING, False), (VALIDATION, True)):
        folder = next((inside[name] for name in names if name in inside), None)
        if folder is not None:
            below = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
            groups += [_Group(folder.name, cases, held)] if (cases := _masked(below, content)) else []
    return groups if len(groups) == 2 else []


def _pairs(images: Sequence[Path], masks: Sequence[Path], content: RasterSet) -> tuple[Case, ...]:
    """A case for each image, with all masks that are its own."""
    by_name = _by_stem(images)
    own: dict[str, list[Path]] = {name: [] for name in by_name}
    for mask in masks:
        continued = _MASK.fullmatch(mask.stem)
        name = mask.stem if mask.stem in own or continued is None else continued["image"]
        if name not in own:
            raise DataError(f"the mask {mask} belongs to no image; expected one named `{name}`")
        own[name].append(mask)
    alone = [name for name, found in own.items() if not found]
    if alone:
        raise DataError(f"{len(alone)} of {len(own)} images have no mask; the first is {by_name[alone[0]]}")
    return tuple(
        Case(
            name,
            partial(read_raster, path),
            partial(_labels, path, tuple(own[name]), content.threshold, content.stretch_masks),
            output=LABEL_FORMAT,
        )
        for name, path in by_name.items()
    )


def _labels(image: Path, masks: tuple[Path, ...], threshold: float, stretch: bool) -> Volume:
    size = raster_size(image)
    for mask in masks:
        if not stretch and raster_size(mask) != size:
            raise DataError(
                f"{mask} has {' x '.join(map(str, raster_size(mask)))} pixels, its image {' x '.join(map(str, size))}; "
                "expected the same. Where the images were stretched afterwards, describe the set in a JSON file with "
                '`"stretch_masks": true`'
            )
    return read_masks(masks, threshold, size if stretch else None)


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path} are both case `{path.stem}`; rename one of them")
        found[path.stem] = path
    return found


def _segmentation(content: RasterSet, groups: Sequence[_Group]) -> Dataset:
    labels = {"background": 0, content.foreground: 1}
    return _assemble(content, groups, "segmentation", labels)


def _classification(content: RasterSet, folders: Mapping[str, Path]) -> Dataset:
    groups = []
    for value, (name, folder) in enumerate(folders.items()):
        files = _by_stem(raster_files(folder))
        if not files:
            raise DataError(f"the class folder {folder} holds no image; fill it, or leave the class `{name}` out")
        groups.append(
            _Group(name, tuple(Case(stem, partial(read_raster, path), category=value) for stem, path in files.items()))
        )
    return _assemble(content, groups, "classification", {name: value for value, name in enumerate(folders)})


def _assemble(
    content: RasterSet,
    groups: Sequence[_Group],
    kind: Literal["segmentation", "classification"],
    labels: dict[str, int],
) -> Dataset:
    groups = _named_apart(groups)
    notes: tuple[str, ...] = ()
    if content.deduplicate:
        groups, notes = _without_copies(groups)
    training: list[Case] = []
    validation: list[Case] = []
    for group in groups:
        held = content.split.held_back([case.name for case in group.cases]) if group.held is None else set()
        for case in group.cases:
            (validation if group.held or case.name in held else training).append(case)
    some = [case for group in groups for case in group.cases]
    channels = content.channels or max(_channels(case.image) for case in some[:: max(1, len(some) // _LOOKED_AT)])
    return Dataset(
        name=content.name,
        training=tuple(training),
        validation=tuple(validation),
        labels=labels,
        channels=CHANNELS[channels],
        kind=kind,
        colour="grey" if channels == 1 else "RGB",
        notes=notes,
    )


def _channels(image: Callable[[], Volume]) -> int:
    assert isinstance(image, partial)
    return raster_channels(Path(image.args[0]))


def _named_apart(groups: Sequence[_Group]) -> list[_Group]:
    """The groups with the name of its folder in front of each case's where names occur twice."""
    names = [case.name for group in groups for case in group.cases]
    if len(set(names)) == len(names):
        return list(groups)
    return [
        replace(group, cases=tuple(replace(case, name=f"{group.name}-{case.name}") for case in group.cases))
        for group in groups
    ]


def _without_copies(groups: Sequence[_Group]) -> tuple[list[_Group], tuple[str, ...]]:
    cases = [case for group in groups for case in group.cases]
    copies = {
        case.name
        for case, original in zip(cases, later_copies(case.image for case in cases), strict=True)
        if original is not None
    }
    kept = [replace(group, cases=tuple(case for case in group.cases if case.name not in copies)) for group in groups]
    return kept, (f"{len(copies)} of {len(cases)} images are near copies of others and were left out",)
