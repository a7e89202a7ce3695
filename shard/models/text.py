"""A model folder's tokenizer where there is no router: transformers' own reading of its files."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shard.models.model_folder import ModelUnusable


def read_tokenizer(folder: Path) -> Tokenizer:
    """With all tokens that the folder's files name, split as its class does. Raises `ModelUnusable`."""
    from transformers import AutoTokenizer  # seconds to import

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a file does in there
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelUnusable(f"The tokenizer in {folder} cannot be read ({said[0]}).") from None
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend
