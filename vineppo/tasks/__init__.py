"""Tasks: problems, segment cuts and grading. TASKS maps the recipe's `task.name` to a class with a `Config`."""

from vineppo.tasks.arithmetic import Arithmetic
from vineppo.tasks.gsm8k import GSM8K
from vineppo.tasks.math import MATH

TASKS = {"arithmetic": Arithmetic, "gsm8k": GSM8K, "math": MATH}
