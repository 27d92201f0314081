"""Why a completion ends: eos token, stop string, or length; and a request whose tokens come until it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vineppo.types import Alternatives, Completion, FinishReason, Request, UserError

REPLACEMENT = "\ufffd"  # how decoders show bytes that are not yet a whole character


def find_eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a text: the tokenizer's, and those of the model's generation config (Llama 3 lists three)."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = listed if isinstance(listed, (list, tuple)) else [listed]
    return frozenset(int(i) for i in (*ids, getattr(tokenizer, "eos_token_id", None)) if i is not None)


class StopRule:
    """Decides after each token whether a completion has ended.

    Stop strings count in the text of the response, of which a request's prefix may hold the first tokens: so a vine
    ends where the rollout ended that it repeats, even if it starts inside of the stop string. In the prompt they do not
    count.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.eos_ids, self.stop = tokenizer, eos_ids, tuple(stop)
        special = set(self.stop) & set(getattr(tokenizer, "all_special_tokens", ()))
        if special:
            raise UserError(f"stop strings are compared with text, which never holds special tokens: {sorted(special)}")
        # A character has at most four bytes and a token at least one, but for a few special tokens without text.
        self.window = 4 * max(map(len, self.stop), default=0) + 16
        self._may_complete: dict[int, bool] = {}

    def may_end(self, token: int) -> bool:
        """Whether a completion may end with this token before its budget does; cheap and never wrongly False."""
        return token in self.eos_ids or bool(self.stop and self._completes(token))

    def reason(self, request: Request, token_ids: Sequence[int], budget: int) -> FinishReason | None:
        if token_ids[-1] in self.eos_ids:
            return "eos"
        if self.stop and self._ends_in_stop(request, token_ids):
            return "stop"
        return "length" if len(token_ids) >= budget else None

    def _ends_in_stop(self, request: Request, token_ids: Sequence[int]) -> bool:
        if not self._completes(token_ids[-1]):
            return False
        text = self._decode((*request.last_response_tokens(self.window), *token_ids)[-self.window :])
        return any(stop in text for stop in self.stop)

    def _completes(self, token: int) -> bool:
        if token not in self._may_complete:
            self._may_complete[token] = self._may_complete_a_stop(token)
        return self._may_complete[token]

    def _may_complete_a_stop(self, token: int) -> bool:
        """The token that completes a stop string brings its last character."""
        text = self._decode([token])
        return REPLACEMENT in text or any(stop[-1].isspace() or stop[-1] in text for stop in self.stop)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


class PartialCompletion:
    """One request of a batch and the tokens that it has so far."""

    def __init__(self, index: int, request: Request, budget: int) -> None:
        self.index, self.request, self.budget = index, request, budget
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.alternatives: list[Alternatives] = []  # as many, if they are asked for
        self.finish_reason: FinishReason | None = None

    def add(self, token: int, logprob: float, rule: StopRule, alternatives: Alternatives | None = None) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if alternatives is not None:
            self.alternatives.append(alternatives)
        self.finish_reason = rule.reason(self.request, self.token_ids, self.budget)

    def completion(self, version: int) -> Completion:
        assert self.finish_reason is not None
        alternatives = tuple(self.alternatives) or None
        return Completion(tuple(self.token_ids), tuple(self.logprobs), self.finish_reason, version, alternatives)
