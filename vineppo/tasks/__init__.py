"""Tasks: problems, where a response may be cut into segments, and how good it is.

    arithmetic.py gsm8k.py math.py    a task each: what to copy for one of your own (docs/tasks.md)
    qa.py reward_functions.py         questions and answers of any file, graded by functions of the user's if need be
    reasoning_gym.py                  the generators of a package
    code.py python_tool.py            programs, and mathematics with a Python tool; both run in vineppo/sandbox
    programs/                         programs as responses: read, cut, judged by tests
    game.py games/                    text games with mistakes that can be repaired, a file each
    web.py shop/                      a small shop on the web, in which the right item is to be bought
    textarena.py arena.py             games of the package textarena, and how one is replayed
    drawn_problems.py episodes.py     splits of problems that are drawn; episodes played without a model
    global_generators.py              packages that draw from common generators, made to repeat
    problem_set.py dataset.py         splits of a finite set of problems; the files they are read from
    latex.py                          where a LaTeX solution may be cut; lines are cut by vineppo/segments.py
    paper_segments.py                 where the paper's code cuts both, for recipes/paper/ alone
    answers/                          reads final answers and compares them with the gold one

A task satisfies `vineppo.protocols.Task` and knows nothing of processes or limits: vineppo/grading calls its `grade`.
TASKS maps the recipe's `task.name` to a class with a `Config`.
"""

from vineppo.tasks.arithmetic import Arithmetic
from vineppo.tasks.code import Code
from vineppo.tasks.game import Game
from vineppo.tasks.gsm8k import GSM8K
from vineppo.tasks.math import MATH
from vineppo.tasks.python_tool import PythonTool
from vineppo.tasks.qa import QA
from vineppo.tasks.reasoning_gym import ReasoningGym
from vineppo.tasks.textarena import TextArena
from vineppo.tasks.web import Web

TASKS = {
    "arithmetic": Arithmetic,
    "code": Code,
    "game": Game,
    "gsm8k": GSM8K,
    "math": MATH,
    "python_tool": PythonTool,
    "qa": QA,
    "reasoning_gym": ReasoningGym,
    "textarena": TextArena,
    "web": Web,
}
