"""Error messages for models that cannot be fetched or loaded: one sentence on what failed and what to try.

Messages that this package raises in `ValueError`, `OSError` and `MemoryError` are passed on. Errors of
libraries are translated here; tracebacks show with `--log-level debug`.
"""

import errno
from pathlib import Path

_PACKAGE = Path(__file__).parent
_MAX_CHARS = 300
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_MEMORY_ADVICE = "lower --kv-cache-bytes, --max-batch-size or --num-shards, or serve a smaller model"
_ADVICE = {
    errno.ENOSPC: "make room, or name another folder with --cache-dir",
    errno.EDQUOT: "make room, or name another folder with --cache-dir",
    errno.EROFS: "name a folder that can be written with --cache-dir",
    errno.EACCES: "give this user access, or name another folder with --cache-dir",
    errno.EPERM: "give this user access, or name another folder with --cache-dir",
    errno.ENOTDIR: "name another folder with --cache-dir",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def sentence(error: BaseException, doing: str) -> str:
    """One sentence on a failure. It begins with `doing`: the action, its object, its device."""
    if _is_our_sentence(error):
        return f"{_line(error)}."
    if is_out_of_memory(error):
        return f"{doing} takes more memory than there is{_in_brackets(error)}: {_MEMORY_ADVICE}."
    if "no space left" in str(error).lower():
        return f"{doing} failed, as the disk is full: {_ADVICE[errno.ENOSPC]}."
    if isinstance(error, ImportError):
        return f"{doing} needs what is not installed{_in_brackets(error)}: install Helios again."
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error, doing)
    return f"{doing} failed ({type(error).__name__}: {_line(error)}): --log-level debug shows where."


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's `MemoryError` and for torch's, which on a CPU is a plain `RuntimeError`."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in words for phrase in _NO_MEMORY)


def _of_the_system(error: OSError, doing: str) -> str:
    where = f", {error.filename}" if error.filename else ""
    advice = _ADVICE.get(error.errno or 0)
    return f"{doing} failed ({error.strerror}{where}){f': {advice}' if advice else ''}."


def _is_our_sentence(error: BaseException) -> bool:
    """The error was raised by this package, not by the system or a library."""
    if not isinstance(error, ValueError | OSError | MemoryError) or not str(error):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE)


def _in_brackets(error: BaseException) -> str:
    return f" ({_line(error)})" if str(error) else ""


def _line(error: BaseException) -> str:
    """The error's message, shortened to one line."""
    text = " ".join(str(error).split()).removesuffix(".")
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "..."
