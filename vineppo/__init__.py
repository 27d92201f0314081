"""VinePPO: reinforcement learning of reasoning with measured, not learned, credit assignment (arXiv 2410.01679)."""

from vineppo.machine.threads import spin_briefly

__version__ = "0.1.0"

spin_briefly()  # before anything here imports torch
