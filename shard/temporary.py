"""A substitute for a missing folder of temporary files, as in read-only containers."""

import os
import tempfile
from pathlib import Path


def name_temporary_folder(folder: Path) -> None:
    """Use `folder`, which must exist, if the system has no writable folder of temporary files.

    transformers cannot be imported without one: torch checks for such a folder, but writes nothing there.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(folder)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
