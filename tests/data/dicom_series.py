"""Small DICOM series, written as a scanner would, and what other software makes of our segmentation objects."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

LPS_TO_RAS = np.diag([-1, -1, 1, 1])
PATIENT = "Nobody^Nowhere"


def make_slices(
    voxels: NDArray[np.int16],
    *,
    row: tuple[float, float, float] = (1, 0, 0),
    column: tuple[float, float, float] = (0, 1, 0),
    spacing: tuple[float, float, float] = (2.0, 1.0, 1.5),
    origin: tuple[float, float, float] = (-10, -20, 30),
    **attributes: Any,
) -> list[Dataset]:
    """Slices of [Z, Y, X], spacing (z, y, x) mm, stacked along row x column; `attributes` replace those of all."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(row, column)
    slices = []
    for z, pixels in enumerate(voxels):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.PatientName, ds.PatientID = "MR", PATIENT, "nobody-1"
        ds.PatientBirthDate, ds.PatientSex, ds.StudyDate, ds.StudyTime = "19000101", "O", "20260101", "120000"
        ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName, ds.SeriesNumber = "1", "", "", 3
        ds.Manufacturer, ds.InstanceNumber, ds.ImageType = "none", z + 1, ["ORIGINAL", "PRIMARY"]
        ds.ImageOrientationPatient = [*row, *column]
        ds.ImagePositionPatient = [round(float(v), 6) for v in np.array(origin) + z * spacing[0] * normal]
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        ds.Rows, ds.Columns = pixels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelData = pixels.astype("<i2").tobytes()
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        slices.append(ds)
    return slices


def save_slices(folder: Path, slices: list[Dataset]) -> list[Path]:
    """Files that are named against their order in space."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{len(slices) - i:04d}.dcm" for i in range(len(slices))]
    for file, ds in zip(files, slices, strict=True):
        ds.save_as(file, enforce_file_format=True)
    return files


def on_grid(seg: highdicom.seg.Segmentation, affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The segments of an object, put onto the grid [Z, Y, X] of a RAS affine by their places in space."""
    found = seg.get_volume(combine_segments=True)
    full = np.zeros(shape, np.uint8)
    to_ours = np.linalg.inv(affine) @ LPS_TO_RAS @ np.asarray(found.affine)
    indices = np.argwhere(found.array)
    places = (np.c_[indices, np.ones(len(indices))] @ to_ours.T)[:, 2::-1]  # (z, y, x)
    np.testing.assert_allclose(places, places.round(), atol=0.02)
    full[tuple(places.round().astype(int).T)] = found.array[tuple(indices.T)]
    return full


def dciodvfy(path: Path) -> list[str]:
    """Errors that dicom3tools finds in a segmentation object; skips where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines
    return [line for line in lines if line.startswith(("Error", "Abort"))]
