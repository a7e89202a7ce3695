"""Fits the cost of a request alone to the times of batched steps. Pure.

A step's time is modelled as linear in four terms: a constant, the layers it runs, its tokens, and the layers
summed over its tokens. So candidates measured at different hours and batch sizes are compared as if each
request ran alone (the idealized runtime of Narayanan et al., 2305.02440).
"""

import msgspec

_NUM_TERMS = 4
_RIDGE = 1e-6  # relative to each term's scale: decides what samples leave open, such as at a single depth


class CostFit(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds of a step: step + layer x deepest layer + token x tokens + token_layer x layers of all."""

    step_ms: float
    layer_ms: float
    token_ms: float
    token_layer_ms: float

    @property
    def a_ms(self) -> float:
        """Milliseconds of one token alone, before its first layer."""
        return self.step_ms + self.token_ms

    @property
    def b_ms(self) -> float:
        """Milliseconds per layer of one token alone."""
        return self.layer_ms + self.token_layer_ms

    def decode_ms(self, depth: float) -> float:
        """Milliseconds of one token alone that runs `depth` layers: a + b x depth."""
        return self.a_ms + self.b_ms * depth

    def prefill_ms(self, num_tokens: int, depth: float) -> float:
        """Milliseconds of a prompt alone, in one step."""
        return (
            self.step_ms + self.layer_ms * depth + num_tokens * (self.token_ms + self.token_layer_ms * depth)
        )

    def request_ms(self, num_prompt_tokens: int, num_tokens: int, prompt_depth: float, depth: float) -> float:
        """Milliseconds of a request alone, whose prompt runs `prompt_depth` layers and its answer `depth`."""
        return self.prefill_ms(num_prompt_tokens, prompt_depth) + num_tokens * self.decode_ms(depth)


class StepSample(msgspec.Struct, frozen=True):
    """One sample of the fit: a step."""

    depth: float  # the deepest layer that was run
    num_tokens: int  # tokens computed
    token_layers: float  # layers run, summed over the tokens
    ms: float

    @property
    def terms(self) -> tuple[float, float, float, float]:
        return (1.0, self.depth, float(self.num_tokens), self.token_layers)


class CostSums(msgspec.Struct, array_like=True):
    """The sums that the fit needs of any number of steps."""

    num_steps: int = 0
    products: list[float] = msgspec.field(default_factory=lambda: [0.0] * (_NUM_TERMS * _NUM_TERMS))
    answers: list[float] = msgspec.field(default_factory=lambda: [0.0] * _NUM_TERMS)

    def add(self, sample: StepSample) -> None:
        terms, products, ms = sample.terms, self.products, sample.ms
        self.num_steps += 1
        for i, term in enumerate(terms):
            self.answers[i] += term * ms
            for j, other in enumerate(terms):
                products[_NUM_TERMS * i + j] += term * other

    def merge(self, other: "CostSums") -> None:
        """Add the other's steps."""
        self.num_steps += other.num_steps
        self.products = [own + more for own, more in zip(self.products, other.products, strict=True)]
        self.answers = [own + more for own, more in zip(self.answers, other.answers, strict=True)]

    def fit(self) -> CostFit | None:
        """Least squares without negative costs; None without a step.

        Terms that the samples do not distinguish share the cost: at a single depth the total is right there,
        and its split into a and b is a guess.
        """
        if not self.num_steps:
            return None
        kept = [i for i in range(_NUM_TERMS) if self.products[(_NUM_TERMS + 1) * i] > 0]
        found = self._solve(kept)
        while kept and min(found) < 0:
            del kept[found.index(min(found))]
            found = self._solve(kept)
        weights = dict(zip(kept, found, strict=True))
        return CostFit(*(weights.get(i, 0.0) for i in range(_NUM_TERMS)))

    def _solve(self, kept: list[int]) -> list[float]:
        """Solve the normal equations of some terms, scaled to length one to make the ridge comparable."""
        scales = [self.products[(_NUM_TERMS + 1) * i] ** 0.5 for i in kept]
        rows: list[list[float]] = []
        for scale, i in zip(scales, kept, strict=True):
            row = [
                self.products[_NUM_TERMS * i + j] / (scale * other)
                for other, j in zip(scales, kept, strict=True)
            ]
            row[len(rows)] += _RIDGE
            rows.append([*row, self.answers[i] / scale])
        return [value / scale for value, scale in zip(_eliminate(rows), scales, strict=True)]


def _eliminate(rows: list[list[float]]) -> list[float]:
    """Solve a positive definite system given with its right side as last column (Gauss-Jordan)."""
    for i, pivot_row in enumerate(rows):
        pivot = pivot_row[i]
        rows[i] = pivot_row = [value / pivot for value in pivot_row]
        for j, row in enumerate(rows):
            if j != i:
                rows[j] = [value - row[i] * by for value, by in zip(row, pivot_row, strict=True)]
    return [row[-1] for row in rows]
