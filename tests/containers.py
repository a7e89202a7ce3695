"""Command prefixes that imitate containers: small disks, read-only disks, a user without a name."""

import functools
import subprocess
from pathlib import Path

import pytest

Words = tuple[str, ...]

_READ_ONLY = """
for place in $(awk '{ print $5 }' /proc/self/mountinfo | sort -ru); do
  case $place in
    /proc* | /sys* | /dev*) ;;
    *) mount -o remount,bind,ro "$place" || exit 99 ;;
  esac
done"""
_AS_USER = ("unshare", "--map-user=54321", "--map-group=54321", "--")
_PLACES = ("HOME", "HELIOS_CACHE", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR")
_TRIAL_TIMEOUT_S = 20


def with_disk(folder: Path, size: str) -> Words:
    """`folder` is an empty disk of that size."""
    return _mounted(f'mount -t tmpfs -o size={size} none "{folder}" || exit 99')


def as_nobody_known(*environment: str) -> Words:
    """Run as a user without a name or a home, except as `environment` says."""
    return (*_mounted(":"), *_user(environment))


def read_only(*environment: str, but: Path | None = None) -> Words:
    """The same with a read-only disk, except the folder `but`, which is empty."""
    disk = "" if but is None else f'\nmount -t tmpfs none "{but}" || exit 99'
    return (*_mounted(_READ_ONLY + disk), *_user(environment))


def _user(environment: Words) -> Words:
    unset = [word for name in _PLACES for word in ("-u", name)]
    return (*_AS_USER, "env", *unset, *environment)


def _mounted(script: str) -> Words:
    """Run in a mount namespace. Skips the test where none can be made."""
    within = ("unshare", "--map-root-user", "--mount", "sh", "-c", f'{script}\nexec "$@"', "sh")
    if not _works((*within, *_AS_USER, "true")):
        pytest.skip("mounts of one's own may not be made here")
    return within


@functools.cache
def _works(trial: Words) -> bool:
    try:
        return subprocess.run(trial, capture_output=True, timeout=_TRIAL_TIMEOUT_S).returncode == 0
    except OSError:
        return False
