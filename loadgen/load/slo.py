"""Service level objectives: which requests count as good."""

import msgspec

from loadgen.cli.units import BadQuantity, seconds
from loadgen.client.records import Outcome, Record

MEASURES = ("ttft", "tpot", "gap", "e2e")


class SLO(msgspec.Struct, frozen=True):
    """Bounds in ms that a good request must all keep. Without bounds every complete answer is good."""

    ttft: float | None = None
    tpot: float | None = None
    gap: float | None = None  # the longest pause between two tokens
    e2e: float | None = None

    @classmethod
    def parse(cls, texts: tuple[str, ...]) -> "SLO":
        """Each text is like `ttft:500ms`. Raises `BadQuantity`."""
        bounds: dict[str, float] = {}
        for text in texts:
            name, colon, bound = text.partition(":")
            if name not in MEASURES or not colon:
                raise BadQuantity(f"{text!r} is not an objective like ttft:500ms (ttft, tpot, gap or e2e)")
            bounds[name] = seconds(bound) * 1e3
        return cls(**bounds)

    @property
    def are_stated(self) -> bool:
        return any(getattr(self, name) is not None for name in MEASURES)

    @property
    def words(self) -> str:
        stated = ((name, getattr(self, name)) for name in MEASURES)
        return ", ".join(f"{name} <= {bound:g} ms" for name, bound in stated if bound is not None)

    def are_met(self, record: Record) -> bool:
        if record.outcome is not Outcome.OK:
            return False
        measured = {
            "ttft": record.ttft_ms,
            "tpot": record.tpot_ms,
            "gap": record.longest_gap_ms,
            "e2e": record.e2e_ms,
        }
        return all(_keeps(getattr(self, name), value) for name, value in measured.items())


def _keeps(bound: float | None, value: float | None) -> bool:
    return bound is None or value is None or value <= bound
