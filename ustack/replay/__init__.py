"""Replay of recordings: the same packets and calls on a ustack in virtual time, compared with what a kernel
did.

`load()` reads a recording, `replay()` runs one of its scenarios; `ustack diff --replay` is the command line
on top.
"""

from .driver import replay, replay_trace
from .recording import FormatError, Recording, Scenario, load, parse
from .report import Difference, Result

__all__ = ["Difference", "FormatError", "Recording", "Result", "Scenario", "load", "parse", "replay", "replay_trace"]
