"""Fetches models from the Hugging Face hub: only the files that serving needs.

huggingface_hub finds access tokens itself: HF_TOKEN, or the one that `hf auth login` stored.
"""

from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, errors, snapshot_download

from shard.models.model_folder import ModelUnusable, check_family

LISTING_TIMEOUT_S = 15
_SMALL_FILES = {".json", ".jinja", ".txt", ".model"}  # configuration and tokenizers of every kind


def fetch(model_id: str, revision: str | None) -> Path:
    """The local snapshot of a hub model, with missing files fetched; without a network, the cached one.

    Raises `ModelUnusable`: no such model or revision, gated, unsupported, no network.
    """
    try:
        names = _listing(model_id, revision)
    except errors.HTTPError as error:
        return _cached(model_id, revision, error)
    wanted = wanted_files(names)
    packed = [name for name in wanted if name.endswith(".gguf")]
    if len(packed) > 1:
        raise ModelUnusable(
            f"{model_id} holds several .gguf files ({', '.join(packed)}): download one and name its path."
        )
    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted))
    except errors.GatedRepoError:
        raise ModelUnusable(_gated(model_id)) from None
    except (errors.HTTPError, OSError) as error:
        raise ModelUnusable(
            f"Fetching {model_id} from the hub broke off ({_short(error)}): try again."
        ) from None


def wanted_files(names: list[str]) -> list[str]:
    """The files of a repository to fetch: configuration, tokenizer and one form of the weights."""
    top = [PurePosixPath(name) for name in names if "/" not in name]
    small = [path.name for path in top if path.suffix in _SMALL_FILES]
    weights = [path.name for path in top if path.suffix == ".safetensors" and path.stem != "consolidated"]
    old = [path.name for path in top if path.match("pytorch_model*.bin")]
    packed = [path.name for path in top if path.suffix == ".gguf"]
    return small + (weights or old or packed)


def _listing(model_id: str, revision: str | None) -> list[str]:
    """Names of the repository's files, after checking that it can be served."""
    try:
        info = HfApi().model_info(model_id, revision=revision, timeout=LISTING_TIMEOUT_S)
    except errors.HFValidationError:
        raise ModelUnusable(
            f"{model_id!r} is neither a folder here nor a hub id such as owner/name."
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelUnusable(
            f"{model_id} has no revision {revision!r}: name a branch, tag or commit of it."
        ) from None
    except errors.GatedRepoError:
        raise ModelUnusable(_gated(model_id)) from None
    except errors.RepositoryNotFoundError:
        raise ModelUnusable(
            f"No model {model_id} is here or on the hub: check the name, or set HF_TOKEN for a private one."
        ) from None
    if info.config and "model_type" in info.config:
        check_family(info.config["model_type"], model_id)
    return [sibling.rfilename for sibling in info.siblings or []]


def _cached(model_id: str, revision: str | None, error: Exception) -> Path:
    try:
        return Path(snapshot_download(model_id, revision=revision, local_files_only=True))
    except errors.IncompleteSnapshotError as incomplete:
        return Path(incomplete.snapshot_path)  # the caller checks for missing files
    except errors.LocalEntryNotFoundError:
        raise ModelUnusable(
            f"{model_id} is not on this machine and the hub cannot be reached ({_short(error)}): check the "
            "network, name a local folder, or leave out --model-id to serve the embedded model."
        ) from None


def _gated(model_id: str) -> str:
    return f"{model_id} is gated: accept its terms on its hub page, then set HF_TOKEN to a token of yours."


def _short(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].removesuffix(".") or type(error).__name__
