"""Where programs run that a model has written: what they can do, and for how long (docs/sandbox.md).

sandbox.py        Sandbox: a program in, what it said out
backends.py       how a program is locked in: bubblewrap, or Landlock
system_calls.py   the system calls that it has
boot.py           the first lines that run inside, before the program's
process.py        one running program: its input, its output, its end
"""

from vineppo.sandbox.process import Process, SandboxError
from vineppo.sandbox.sandbox import Finished, Limits, Sandbox

__all__ = ["Finished", "Limits", "Process", "Sandbox", "SandboxError"]
