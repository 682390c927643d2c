"""How long a failed task waits for its next attempt."""

from __future__ import annotations

import random

from msgspec import Struct

from ruv_swarm_store.errors import InvalidValue


class Backoff(Struct, frozen=True):
    """How long a failed task waits: `initial` seconds, times `factor` and plus `step` for each retry, at most `maximum`.

    `exponential`, `linear` and `constant` name the usual ones. `jitter` spreads each wait by up to that share of it either
    way, so that tasks that failed together do not come back together.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.1
    step: float = 0.0

    def __post_init__(self) -> None:
        for name in ("initial", "factor", "maximum", "jitter", "step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e11:
                raise InvalidValue(f"{name} of a back-off is {value!r}", hint="Give a number, zero or more")
        if self.jitter > 1:
            raise InvalidValue(f"jitter of a back-off is {self.jitter!r}", hint="Give a share from 0 to 1")

    @classmethod
    def exponential(cls, initial: float = 1.0, *, factor: float = 2.0, maximum: float = 300.0, jitter: float = 0.1) -> Backoff:
        """1 s, 2 s, 4 s, …: `initial` seconds, and `factor` times as long after each retry, at most `maximum` seconds."""
        return cls(initial, factor, maximum, jitter)

    @classmethod
    def linear(cls, step: float = 1.0, *, maximum: float = 300.0, jitter: float = 0.1) -> Backoff:
        """1 s, 2 s, 3 s, …: `step` seconds more after each retry, at most `maximum` seconds."""
        return cls(step, 1.0, maximum, jitter, step)

    @classmethod
    def constant(cls, seconds: float, *, jitter: float = 0.1) -> Backoff:
        """Always `seconds`."""
        return cls(seconds, 1.0, seconds, jitter)

    def seconds(self, retries: int) -> float:
        """The wait before retry number `retries + 1`."""
        wait = min(self.initial * self.factor ** min(retries, 64) + self.step * retries, self.maximum)
        return wait * random.uniform(1 - self.jitter, 1 + self.jitter)


DEFAULT_BACKOFF = Backoff()
