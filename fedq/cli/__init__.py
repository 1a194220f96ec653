"""The command line: the twin of the Python face."""
