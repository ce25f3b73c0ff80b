"""What can go wrong with a scenario, apart from a difference."""

from __future__ import annotations


class ScenarioError(ValueError):
    """The scenario asks for something that makes no sense; the text names the place."""


class MachineCannot(RuntimeError):
    """This machine offers no kernel to run against; the text says what would help."""
