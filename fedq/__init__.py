"""Send PyTorch computations to data through folders: no server, no open port, no pickle."""

from __future__ import annotations

__version__ = "0.1.0"
