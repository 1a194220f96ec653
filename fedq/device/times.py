"""The time a device goes by: its clock, unless that leapt. Pure; no IO, no clock.

Time never runs backwards by a little, and a leap of more than a day, ahead or back, is believed
only when the clock has stood by it for an hour: till then time stands still. So a clock that is
wrong after a start and is put right soon expires nothing; and a device that was off for weeks
still does what was asked of it before. That nothing is revived by a clock that was set back is
not left to the clock at all: see `Journal.forgotten`.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAP_S = 86_400.0
SURE_S = 3_600.0


@dataclass(slots=True)
class Time:
    """What is believed: ``high``, the last believed reading; ``leapt``, the first one that is not, or 0."""

    high: float = 0.0
    leapt: float = 0.0

    def read(self, clock: float) -> float:
        """The time, now that the clock says this."""
        if not self.high or 0 <= clock - self.high <= LEAP_S:
            self.high, self.leapt = clock, 0.0
        elif -LEAP_S <= clock - self.high < 0:
            self.leapt = 0.0
        elif not self.leapt or not 0 <= clock - self.leapt <= LEAP_S:
            self.leapt = clock
        elif clock - self.leapt >= SURE_S:
            self.high, self.leapt = clock, 0.0
        return self.high
