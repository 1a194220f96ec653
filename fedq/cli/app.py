"""All commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from fedq import __version__
from fedq.cli import data, device, plan, review, sent, value
from fedq.cli.call import AsJson, DevicesRoot, QueueRoot, Shown, finish

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Send PyTorch computations to data through folders.",
    epilog="""\b
Examples:
  $ fedq device init device_1
  $ fedq data add device_1 readings.csv --tag input_data --release open
  $ fedq device up device_1
  $ fedq build tour.py:double_abs -o double_abs.safetensors
  $ fedq run double_abs.safetensors device_1:input_data
  $ fedq get device_1:ID""",
)


def _version(wanted: bool) -> None:
    if wanted:
        finish(Shown(__version__, f"fedq {__version__}"), as_json=False)
        raise typer.Exit


@app.callback()
def _shared(
    queue_root: QueueRoot = None,
    devices_root: DevicesRoot = None,
    as_json: AsJson = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.add_typer(device.app, name="device")
app.add_typer(data.app, name="data")
for part in (plan.app, value.app, sent.app, review.app):
    app.add_typer(part)
