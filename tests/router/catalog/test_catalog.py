"""What may be served here, by name and depth, and what a shard is asked for then."""

import json
from pathlib import Path

import msgspec
import pytest

from router.catalog.candidate_config import repository_of
from router.catalog.catalog import Catalog, UnknownCandidate, entry_of
from router.catalog.repository import Candidate, Choice, Repository
from router.settings.config import Config
from tests.router.http_fakes import byte_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of eight layers, by its configuration alone."""
    shape = {"num_hidden_layers": 8, "max_position_embeddings": 512, "hidden_size": 64}
    shape |= {"num_attention_heads": 4, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    return tmp_path


def by_flags(folder: Path, **settings: object) -> Catalog:
    config = Config(model_id="mine", device="cpu", **settings)
    repository = repository_of(config)
    return catalog_of(config, repository, folder)


def catalog_of(config: Config, repository: Repository, folder: Path) -> Catalog:
    entries = [entry_of(config, candidate, folder) for candidate in repository.candidates]
    catalog = Catalog(config, repository, entries)
    catalog.tokenizers[folder] = byte_tokenizer()
    return catalog


def depths(catalog: Catalog) -> list[int]:
    return [choice.depth for choice in catalog.choices]


async def test_flags_offer_the_model_at_the_exits_that_they_name(folder: Path) -> None:
    catalog = by_flags(folder, exit_mode="per_row", exit_layers=(2, 5))
    assert (catalog.names, depths(catalog), catalog.max_total_tokens) == (("mine",), [2, 5, 8], 512)
    whole = (await catalog.target(catalog.choose("mine", None))).config
    assert (whole.exit_mode, whole.num_layers, whole.exit_layers) == ("per_row", None, [2, 5])
    capped = (await catalog.target(Choice("mine", 5))).config
    assert (capped.exit_mode, capped.num_layers, capped.exit_layers) == ("capped", 5, [5])


async def test_flags_offer_the_model_at_the_exits_of_a_folder(folder: Path) -> None:
    (folder / "exits.json").write_text(json.dumps({"exits": [{"layer": 3}, {"layer": 6}]}))
    catalog = by_flags(folder, exit_mode="capped", exits=str(folder), num_layers=6)
    assert depths(catalog) == [3, 6]
    capped = (await catalog.target(catalog.choose("mine", None))).config
    assert (capped.exit_mode, capped.num_layers, capped.exits) == ("capped", 6, str(folder))


async def test_flags_that_cap_a_model_begin_with_the_layers_that_they_name(folder: Path) -> None:
    (folder / "exits.json").write_text(json.dumps({"exits": [{"layer": 3}, {"layer": 6}]}))
    catalog = by_flags(folder, exit_mode="capped", exits=str(folder), num_layers=3)
    assert depths(catalog) == [3]
    assert (await catalog.target(catalog.choose("mine", None))).config.num_layers == 3


def test_flags_without_exits_offer_one_depth(folder: Path) -> None:
    assert depths(by_flags(folder)) == [8]
    catalog = by_flags(folder, num_layers=5)
    assert depths(catalog) == [5]


async def test_candidates_of_a_repository_differ_in_their_exits(folder: Path) -> None:
    chat = Candidate(name="chat", model="m", exits=str(folder), mode="per_row", depths=(2, 9))
    plain = Candidate(name="plain", model="m")
    config = Config(device="cpu", repository="some.toml")
    catalog = catalog_of(config, Repository(candidates=(chat, plain)), folder)
    assert catalog.choices == [Choice("chat", 2), Choice("chat", 8), Choice("plain", 8)]
    target = await catalog.target(Choice("chat", 2))
    assert (target.name, target.config.exit_mode, target.config.exits) == ("chat", "capped", str(folder))
    assert (await catalog.target(Choice("plain", 8))).config.exits is None
    assert target.tokenizer is (await catalog.target(Choice("plain", 8))).tokenizer


def test_what_cannot_be_had_is_not_offered_and_says_why(folder: Path) -> None:
    gone = Candidate(name="gone", model="m", exits=str(folder / "nowhere"), depths=(2,))
    here = Candidate(name="here", model="m")
    config = Config(device="cpu", repository="some.toml")
    catalog = catalog_of(config, Repository(candidates=(here, gone)), folder)
    assert catalog.choices == [Choice("here", 8)]
    with pytest.raises(UnknownCandidate, match="exits are missing"):
        catalog.choose("gone", 2)
    with pytest.raises(UnknownCandidate, match="there are here, gone"):
        catalog.choose("elsewhere", None)
    with pytest.raises(UnknownCandidate, match="it has 8"):
        catalog.choose("here", 7)


def test_the_longest_answer_is_one_that_every_model_takes(folder: Path) -> None:
    config = Config(device="cpu", repository="some.toml")
    repository = Repository(
        candidates=(Candidate(name="long", model="m"), Candidate(name="short", model="m"))
    )
    long, short = (entry_of(config, candidate, folder) for candidate in repository.candidates)
    catalog = Catalog(config, repository, [long, msgspec.structs.replace(short, max_total_tokens=64)])
    assert catalog.max_total_tokens == 64
