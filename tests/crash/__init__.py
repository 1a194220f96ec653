"""Kill -9, power cuts and failing disks, until nothing is lost: ``python -m tests.crash --help``."""
