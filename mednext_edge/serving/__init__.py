"""Services around a bundle: DICOM, MRD, packages for model servers, cohorts on a cluster.

Research software, not a medical device: what these services send must not be used for diagnosis or treatment.
"""
