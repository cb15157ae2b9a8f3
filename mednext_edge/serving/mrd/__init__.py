"""A bundle behind the ISMRMRD stream, as scanners' image reconstruction (FIRE, OpenRecon) and Gadgetron speak it."""
