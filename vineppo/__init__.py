"""VinePPO: reinforcement learning of reasoning with measured, not learned, credit assignment (arXiv 2410.01679)."""

__version__ = "0.1.0"
