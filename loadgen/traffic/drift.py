"""Classes of prompts that change during a run, by a schedule."""

import msgspec

from loadgen.cli.units import BadQuantity, seconds, weights


class Phase(msgspec.Struct, frozen=True):
    """A mixture of classes that holds until a time, or until a number of started requests."""

    mixture: dict[str, float]
    until_s: float | None = None
    until_request: int | None = None

    def covers(self, number: int, at_s: float) -> bool:
        if self.until_request is not None:
            return number < self.until_request
        return self.until_s is None or at_s < self.until_s


class Schedule(msgspec.Struct, frozen=True):
    """Consecutive phases; the last one has no end."""

    phases: tuple[Phase, ...]

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """`chat@30s, code@30s, chat+code@30s`, or `chat@150, code@150` in requests. Raises `BadQuantity`."""
        phases: list[Phase] = []
        elapsed_s, num_requests = 0.0, 0
        for part in text.split(","):
            mixture, at, extent = (piece.strip() for piece in part.partition("@"))
            if not mixture or (at and not extent):
                raise BadQuantity(f"{text!r} is not a schedule like chat@30s, code@30s or chat@150, code@150")
            if extent.isdigit():
                num_requests += int(extent)
                phases.append(Phase(weights(mixture), until_request=num_requests))
            else:
                elapsed_s += seconds(extent) if extent else float("inf")
                phases.append(Phase(weights(mixture), until_s=elapsed_s))
        if num_requests and elapsed_s:
            raise BadQuantity(f"{text!r} mixes seconds and requests")
        return cls(tuple(phases))

    @property
    def groups(self) -> set[str]:
        return {group for phase in self.phases for group in phase.mixture}

    @property
    def duration_s(self) -> float | None:
        """Total duration, if phases are given in time."""
        return self.phases[-1].until_s

    @property
    def num_requests(self) -> int | None:
        return self.phases[-1].until_request

    def at(self, number: int, at_s: float) -> Phase:
        return next((phase for phase in self.phases if phase.covers(number, at_s)), self.phases[-1])
