"""A bundle as what a model server or a scanner takes: Triton, OpenVINO Model Server, OpenRecon."""
