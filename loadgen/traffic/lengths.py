"""Distributions of token counts, parsed from options and drawn from a seeded source."""

import random

import msgspec

from loadgen.cli.units import BadQuantity, number

MAX_TOKENS = 10_000_000
FORMS = "128, uniform:64:512, normal:MEAN:SD, lognormal:MEDIAN:SIGMA or choice:64,128"


class Lengths(msgspec.Struct, frozen=True):
    """A distribution of integer token counts, at least 1."""

    kind: str
    first: float
    second: float = 0.0
    choices: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Read one of `FORMS`. Raises `BadQuantity`."""
        kind, _, rest = text.partition(":")
        parts = rest.split(":")
        match kind, parts:
            case "choice", [values] if values:
                chosen = tuple(int(number(value, "tokens")) for value in values.split(","))
                return cls("choice", 0, choices=chosen)
            case "uniform", [first, second] if number(first, "tokens") > number(second, "tokens"):
                raise BadQuantity(f"{text!r} goes backward: uniform:LEAST:MOST")
            case (("uniform" | "normal" | "lognormal"), [first, second]):
                return cls(kind, number(first, "tokens"), number(second, "tokens"))
            case value, [""]:
                return cls("fixed", number(value, "tokens"))
        raise BadQuantity(f"{text!r} is not a length: {FORMS}")

    def draw(self, source: random.Random) -> int:
        return min(MAX_TOKENS, max(1, round(self._draw(source))))

    def _draw(self, source: random.Random) -> float:
        match self.kind:
            case "uniform":
                return source.randint(round(self.first), round(self.second))
            case "normal":
                return source.gauss(self.first, self.second)
            case "lognormal":
                return self.first * source.lognormvariate(0, self.second)
            case "choice":
                return source.choice(self.choices)
            case _:
                return self.first
