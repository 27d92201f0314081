"""What was said in a response of several turns, and who said it."""

from __future__ import annotations

from collections.abc import Sequence


class Transcript(str):
    """The text of a response, with the turns that it is made of.

    `turns` begin with the policy's, and the environment's replies are every second one:

        >>> said = Transcript.of(["go north\\n", "A door. It is locked.\\n", "use key\\n"])
        >>> said.actions, said.replies
        (('go north\\n', 'use key\\n'), ('A door. It is locked.\\n',))
        >>> said == "go north\\nA door. It is locked.\\nuse key\\n"
        True

    A policy can write what looks like a reply; only the turns tell who wrote what.
    """

    turns: tuple[str, ...]

    @classmethod
    def of(cls, turns: Sequence[str], text: str | None = None) -> Transcript:
        """`text` is what was written where it is more than the turns: the stop strings that ended them."""
        said = cls("".join(turns) if text is None else text)
        said.turns = tuple(turns)
        return said

    @property
    def actions(self) -> tuple[str, ...]:
        return self.turns[::2]

    @property
    def replies(self) -> tuple[str, ...]:
        return self.turns[1::2]


def turns_of(response: str) -> tuple[str, ...]:
    """A plain text is one turn of the policy's."""
    return response.turns if isinstance(response, Transcript) else (response,)


def actions_of(response: str) -> tuple[str, ...]:
    """The policy's turns."""
    return turns_of(response)[::2]


def rest_of(text: str, before: str) -> str:
    """What follows the beginning `before` of a text; of transcripts, in turns too."""
    rest = text[len(before) :]
    if not (isinstance(text, Transcript) and isinstance(before, Transcript)):
        return rest
    num_over = len(before.turns) if len(before.turns) % 2 == 0 else len(before.turns) - 1
    begun = before.turns[num_over] if len(before.turns) > num_over else ""
    first, *others = text.turns[num_over:]
    return Transcript.of([first[len(begun) :], *others], rest)
