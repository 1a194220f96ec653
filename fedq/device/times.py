"""The time a device goes by: its clock, unless that leapt ahead. Pure; no IO, no clock.

Time does not run backwards by a little. A leap ahead of more than a day is believed only when the
clock stands by it for an hour; till then time stands still, so a clock that is wrong after a
start and put right soon expires nothing, and a device that was off for weeks still does what was
asked of it before. A leap back is believed at once: that it revives nothing is not left to the
clock, see `Journal.collect`.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAP_S = 86_400.0
SURE_S = 3_600.0


@dataclass(slots=True)
class Time:
    """What is believed.

    Attributes:
        high: the last reading that was believed, 0 before the first.
        leapt: the first reading after a leap ahead that is not believed yet, else 0.
    """

    high: float = 0.0
    leapt: float = 0.0

    def read(self, clock: float) -> float:
        """The time, now that the clock says this."""
        ahead = clock - self.high
        if self.high and ahead > LEAP_S:
            if not self.leapt or not 0 <= clock - self.leapt <= LEAP_S:
                self.leapt = clock
            if clock - self.leapt < SURE_S:
                return self.high
        self.leapt = 0.0
        if not -LEAP_S <= ahead < 0:
            self.high = clock
        return self.high
