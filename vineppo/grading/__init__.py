"""Grading: what becomes of (problem, response) pairs, whichever task they are of.

grader.py   Grader: a batch of pairs in, grades out; each distinct pair once; verdicts counted
ahead.py    grades answers while others are still being written
pool.py     the worker processes of a task with `isolate`, watched and replaced
worker.py   what runs in such a process
finding.py  what a worker says of one answer
judge.py    a reward model's share of the reward
"""

from vineppo.grading.ahead import GradingAhead
from vineppo.grading.finding import Pair
from vineppo.grading.grader import Grader, GradingConfig
from vineppo.grading.judge import Judge

__all__ = ["Grader", "GradingAhead", "GradingConfig", "Judge", "Pair"]
