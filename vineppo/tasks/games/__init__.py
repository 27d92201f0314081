"""Games of the task `game`, one file each; rules.py says what one must do. The recipe's `task.game` picks one."""

from vineppo.tasks.games.guess import Guess
from vineppo.tasks.games.keydoor import KeyDoor

GAMES = {"guess": Guess, "keydoor": KeyDoor}
