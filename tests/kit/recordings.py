"""The project's recording of a real kernel, as the tests use it (a copy without the redundant `vectors`)."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent.parent / "data" / "observations.json.gz"


@functools.cache
def raw() -> dict[str, Any]:
    """The decoded JSON. Shared: whoever changes a scenario copies it first."""
    data: dict[str, Any] = json.loads(gzip.decompress(PATH.read_bytes()))
    return data


def scenario(name: str) -> dict[str, Any]:
    return next(s for s in raw()["scenarios"] if s["id"] == name)
