"""A DICOM node that segments: series in by C-STORE, segmentation objects out by C-STORE or STOW-RS."""
