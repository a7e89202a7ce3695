"""A folder that stands for that of temporary files where there is none: in a container that is read-only."""

import os
import tempfile
from pathlib import Path


def name_temporary_folder(folder: Path) -> None:
    """`folder`, which exists, if the system has none that can be written to.

    transformers cannot be imported otherwise: torch makes sure of such a folder, and puts nothing there.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(folder)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
