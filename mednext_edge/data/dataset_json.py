"""dataset.json of the Medical Segmentation Decathlon, of nnU-Net v1 and of nnU-Net v2."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mednext_edge.data.case_files import IMAGE_FOLDERS, LABEL_FOLDERS, CaseFiles, pair, stem
from mednext_edge.data.volume import SUFFIXES
from mednext_edge.errors import DataError
from mednext_edge.regions import ORDER, has_regions, read_regions
from mednext_edge.task import Region

_IGNORE = "dataset.json has an `ignore` label; partly labelled images are not supported"


@dataclass(frozen=True)
class Description:
    """What is known of a data set before any voxel is read.

    Attributes:
        name: of the data set.
        cases: all cases by name.
        validation: names of those that validate; None where the data does not say.
        labels: name to value, sorted by value, background included.
        regions: where labels are unions of values, these; empty elsewhere.
        channels: names.
    """

    name: str
    cases: dict[str, CaseFiles]
    validation: tuple[str, ...] | None
    labels: dict[str, int]
    channels: tuple[str, ...]
    regions: tuple[Region, ...] = ()


def read_description(folder: Path) -> Description:
    """The folder's dataset.json, with the files it names or leaves to the folder.

    Raises:
        DataError: not JSON, a field that is missing or of another form, files that are not there or not inside
            the folder.
    """
    content = _load(folder / "dataset.json")
    (labels, regions), channels = _labels(content), _channels(content)
    ending = content.get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        raise DataError(f"{folder}: dataset.json has the file_ending `{ending}`; expected {' or '.join(SUFFIXES)}")
    listed = _Listing(folder, len(channels))
    cases = listed.training(content)
    if cases is None:
        cases = pair(folder / IMAGE_FOLDERS[0], folder / LABEL_FOLDERS[0])
    if not cases:
        raise DataError(f"{folder}: dataset.json lists no training case")
    validation = listed.validation(content, cases)
    missing = [p for files in cases.values() for p in (*files.images, files.labels) if not p.is_file()]
    if missing:
        raise DataError(f"{folder}: {len(missing)} files of dataset.json are missing; the first is {missing[0]}")
    for name, files in cases.items():
        # One file may hold all channels as a 4-D image; that shows only when it is read.
        if len(files.images) not in (1, len(channels)):
            raise DataError(f"case `{name}` has {len(files.images)} image files for the channels {list(channels)}")
    return Description(str(content.get("name", folder.resolve().name)), cases, validation, labels, channels, regions)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected an object with labels and channel names")
    return content


def _labels(content: dict[str, Any]) -> tuple[dict[str, int], tuple[Region, ...]]:
    """`labels` in either direction: {"background": 0} (nnU-Net v2) or {"0": "background"} (MSD, nnU-Net v1)."""
    given = content.get("labels")
    if not isinstance(given, dict) or not given:
        raise DataError("dataset.json has no `labels` object; expected the name and the value of every label")
    if any(isinstance(value, list) for value in given.values()):
        return _regions(given, content.get(ORDER))
    found: dict[str, int] = {}
    for key, value in given.items():
        if isinstance(value, str) and key.isdecimal():
            name, number = value, int(key)
        elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            name, number = key, value
        else:
            raise DataError(f'dataset.json has the label `{key}: {value}`; expected "name": value or "value": "name"')
        if name in found or number in found.values():
            raise DataError(f"dataset.json names the label `{name}` or its value {number} twice")
        found[name] = number
    if "ignore" in found:
        raise DataError(_IGNORE)
    if 0 not in found.values():
        raise DataError(f"dataset.json has the labels {found}; expected one of value 0, the background")
    return dict(sorted(found.items(), key=lambda item: item[1])), ()


def _regions(given: dict[str, Any], order: Any) -> tuple[dict[str, int], tuple[Region, ...]]:
    """Labels of which some are lists of values (nnU-Net v2)."""
    if "ignore" in given:
        raise DataError(_IGNORE)
    for key, value in given.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise DataError(f"dataset.json has the label `{key}: {value}`; expected a value, or a list of values")
    if not (order is None or (isinstance(order, list) and all(type(v) is int for v in order))):
        raise DataError(f"dataset.json has the {ORDER} {order}; expected a list of values")
    if not has_regions(given):
        return _labels({"labels": {key: v[0] if isinstance(v, list) else v for key, v in given.items()}})
    try:
        return read_regions(given, order)
    except ValueError as error:
        raise DataError(f"dataset.json: {error}") from error


def _channels(content: dict[str, Any]) -> tuple[str, ...]:
    given = content.get("channel_names", content.get("modality"))
    if not isinstance(given, dict) or not given or set(given) != {str(i) for i in range(len(given))}:
        raise DataError(f'dataset.json: found channel_names (or modality) {given}; expected {{"0": "name", ...}}')
    return tuple(str(given[str(i)]) for i in range(len(given)))


@dataclass(frozen=True)
class _Listing:
    """Reads the lists of cases; `channels` is their number."""

    folder: Path
    channels: int

    def training(self, content: dict[str, Any]) -> dict[str, CaseFiles] | None:
        """The listed cases; None where the lists are left out and the folder says it all (nnU-Net v2)."""
        entries = content.get("training")
        if entries is None and isinstance(content.get("dataset"), dict):
            # nnU-Net v2's own list of files that do not follow its naming.
            entries = [
                {"image": e.get("images"), "label": e.get("label")} if isinstance(e, dict) else e
                for e in content["dataset"].values()
            ]
        if entries is None:
            return None
        cases: dict[str, CaseFiles] = {}
        for entry in self._list("training", entries):
            name, files = self._entry(entry)
            if name in cases:
                raise DataError(f"{self.folder}: dataset.json lists the case `{name}` twice")
            cases[name] = files
        return cases

    def validation(self, content: dict[str, Any], cases: dict[str, CaseFiles]) -> tuple[str, ...] | None:
        """Names of the validation cases, whose files are added to `cases`; None where none are listed."""
        entries = self._list("validation", content.get("validation") or [])
        names: list[str] = []
        for entry in entries:
            name, files = self._named(entry, cases) if isinstance(entry, str) else self._entry(entry)
            if name in names:
                raise DataError(f"{self.folder}: dataset.json lists the validation case `{name}` twice")
            if cases.setdefault(name, files) != files:
                raise DataError(f"{self.folder}: dataset.json lists the case `{name}` for training, with other files")
            names.append(name)
        if names and len(names) == len(cases):
            raise DataError(f"{self.folder}: dataset.json lists every case for validation; expected some for training")
        return tuple(names) or None

    def _list(self, field: str, entries: object) -> list[object]:
        if not isinstance(entries, list):
            raise DataError(
                f"{self.folder}: dataset.json has a {type(entries).__name__} for `{field}`; expected a list"
            )
        return entries

    def _entry(self, entry: object) -> tuple[str, CaseFiles]:
        if not isinstance(entry, dict) or "image" not in entry or "label" not in entry:
            raise DataError(f'{self.folder}: dataset.json lists {entry}; expected {{"image": ..., "label": ...}}')
        label = self._inside(entry["label"])
        return stem(label), CaseFiles(self._images(entry["image"]), label)

    def _named(self, entry: str, cases: dict[str, CaseFiles]) -> tuple[str, CaseFiles]:
        """A validation case given as the name of a training case, or as an image with a label folder beside its own."""
        name = stem(Path(entry))
        if name in cases:
            return name, cases[name]
        label = re.sub(r"(^|/)image", r"\1label", entry)
        if label == entry or not self._inside(label).is_file():
            raise DataError(f"{self.folder}: the validation image `{entry}` of dataset.json has no label file")
        return self._entry({"image": entry, "label": label})

    def _images(self, entry: object) -> tuple[Path, ...]:
        if isinstance(entry, list) and entry:
            return tuple(self._inside(e) for e in entry)
        path = self._inside(entry)
        # nnU-Net v1 lists the case's name, while one file a channel lies in the folder.
        suffix = path.name.removeprefix(stem(path))
        numbered = tuple(path.with_name(f"{stem(path)}_{c:04d}{suffix}") for c in range(self.channels))
        return numbered if not path.is_file() and numbered[0].is_file() else (path,)

    def _inside(self, entry: object) -> Path:
        """A listed path, which must stay in the folder by its name; a link in the folder may point elsewhere."""
        if not isinstance(entry, str) or not entry:
            raise DataError(f"{self.folder}: dataset.json lists {entry!r}; expected a file name")
        relative = Path(os.path.normpath(entry.replace("\\", "/")))
        if relative.is_absolute() or relative.parts[:1] in ((), ("..",)):
            raise DataError(f"{self.folder}: dataset.json lists `{entry}`; expected a path inside the folder")
        return self.folder / relative
