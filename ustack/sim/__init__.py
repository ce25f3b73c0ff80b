"""Seeded simulations in virtual time: two stacks, an impaired wire, random applications, and an oracle that knows every byte.

`python -m ustack.sim 0-9999` runs ten thousand of them; `run(seed)` one.
"""

from ustack.sim.run import Outcome, run

__all__ = ["Outcome", "run"]
