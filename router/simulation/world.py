"""The simulated workload: one large model with exits for chat and for code, and its requests."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from router.catalog.candidate_config import shard_config
from router.catalog.catalog import CatalogEntry
from router.catalog.profile import CandidateProfile
from router.catalog.read_profile import profile_of
from router.catalog.repository import Candidate, Choice, Floor, Repository
from router.catalog.served_model import Target
from router.scheduling.request import Spec
from router.settings.config import Config
from router.text.prompt import Prompt
from router.text.prompt_class import PromptClass
from router.text.tokenizer import Tokenizer
from shard.messages import Sampling

NUM_LAYERS = 40
VOCAB_SIZE = 512
NUM_PROMPT_TOKENS = 24
NUM_ANSWER_TOKENS = 8
KINDS = ("chat", "code")
_TEXTS = {"chat": "Tell me about the sea.", "code": "Write a python function."}
_EASY = {"settled": {"10": 0.3, "20": 0.55}, "agreement": 0.6}
_HARD = {"settled": {"10": 0.1, "20": 0.1}, "agreement": 0.3}
_COSTS = {
    "step_ms": 400.0,
    "token_ms": 0.5,
    "sequence_ms": 1.0,
    "load_ms": 800.0,
    "num_layers": NUM_LAYERS,
    "vocab_size": VOCAB_SIZE,
    "max_total_tokens": 256,
}


class ScaleCatalog:
    """A catalog of three candidates: one without exits, and two that may be capped, each for one class."""

    def __init__(self, config: Config, folder: Path):
        classes = {"full": [_EASY], "chat": [_EASY, _HARD], "code": [_HARD, _EASY]}
        for name, costs in classes.items():
            (folder / f"{name}.json").write_text(json.dumps(_COSTS | {"classes": costs}))
        candidates = tuple(_candidate(name, folder) for name in classes)
        self.repository = Repository(candidates=candidates, floor=Floor(agreement=0.8))
        self._config = config
        self._entries = {
            candidate.name: CatalogEntry(candidate, folder, NUM_LAYERS) for candidate in candidates
        }
        self._tokenizer = byte_tokenizer()

    @property
    def profiles(self) -> dict[str, CandidateProfile]:
        return {name: profile_of(self._config, entry) for name, entry in self._entries.items()}

    async def target(self, choice: Choice) -> Target:
        return self.target_of(choice)

    def target_of(self, choice: Choice) -> Target:
        entry = self._entries[choice.candidate]
        depth = None if choice.depth == NUM_LAYERS else choice.depth
        return Target(
            choice.candidate,
            shard_config(self._config, entry.candidate, entry.folder, depth),
            self._tokenizer,
        )

    def requests(
        self, count: int, num_shifts: int, num_mixed: int, seed: int = 0
    ) -> Iterator[tuple[int, str, Spec]]:
        """Requests in phases of one class, then of both: (phase, class, spec)."""
        draw = random.Random(seed)
        for index in range(count):
            stretch = index * (num_shifts + 1) // count
            kind = KINDS[stretch % len(KINDS)]
            yield stretch, kind, self._spec(kind, draw)
        for _ in range(num_mixed):
            kind = draw.choice(KINDS)
            yield num_shifts + 1, kind, self._spec(kind, draw)

    def _spec(self, kind: str, draw: random.Random) -> Spec:
        """A spec. Chat has tokens of the lower half of the vocabulary, code of the upper half."""
        half = VOCAB_SIZE // 2
        first = half * KINDS.index(kind)
        prompt = [first + draw.randrange(half) for _ in range(NUM_PROMPT_TOKENS)]
        return Spec(
            prompt_token_ids=prompt,
            tokenizer=self._tokenizer,
            prompt=Prompt(_TEXTS[kind]),
            max_new_tokens=NUM_ANSWER_TOKENS,
            sampling=Sampling(seed=draw.randrange(2**31)),
        )


def _candidate(name: str, folder: Path) -> Candidate:
    costs = str(folder / f"{name}.json")
    if name == "full":
        return Candidate(name=name, model="large", cost_model=costs)
    return Candidate(
        name=name, model="large", depths=(10, 20), prompts=(PromptClass(name),), cost_model=costs
    )


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with a token per byte, and more ids up to the vocabulary's size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = alphabet + [f"<{id}>" for id in range(len(alphabet), VOCAB_SIZE)]
    backend = tokenizers.Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, None)
