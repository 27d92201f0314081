"""A reward model: how good is what has been written so far, a number in [0, 1] for any prefix of a response.

It is a causal sequence or token classifier. One forward of a response reads the number of each of its prefixes: a
linear head on the hidden state of the prefix's last token. For a sequence classifier that is what it says of the
prefix as a whole (an outcome reward model, ORM), for a token classifier what it says at the token (PRM).

From logits to numbers: sigmoid of one logit; of two, the softmax of the last class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vineppo.batch import Batch, collate, microbatches, num_tokens
from vineppo.framing import encode_prompt
from vineppo.models import RewardModelConfig, longest_prompt
from vineppo.models.loading import check_vocabulary, load_classifier, load_tokenizer
from vineppo.models.make import value_head
from vineppo.sample import Sample, make_sample
from vineppo.types import Problem, UserError

Response = tuple[tuple[int, ...], tuple[int, ...]]  # prompt ids, response ids


class RewardModel:
    """`name` is the model's, for messages."""

    def __init__(self, model: Any, tokenizer: Any, name: str, *, microbatch_tokens: int = 8192):
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.microbatch_tokens = microbatch_tokens

    def values(self, responses: Sequence[Response]) -> list[tuple[float, ...]]:
        """[L+1] for each: of the states before every response token and after the last."""
        return self.read([state_sample(*response, range(len(response[1]) + 1)) for response in responses])

    def scores(self, answers: Sequence[tuple[Problem, str]]) -> list[float]:
        """Of whole responses given as texts, in its own tokens and closed by its own eos."""
        samples = []
        for problem, text in answers:
            response_ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
            prompt_ids = encode_prompt(self.tokenizer, problem.prompt)
            samples.append(state_sample(prompt_ids, response_ids, [len(response_ids)]))
        return [row[0] for row in self.read(samples)]

    @torch.no_grad()
    def read(self, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        """The numbers at the states that each sample stands for (`state_sample`), in their order."""
        self._check_lengths(samples)
        rows: list[tuple[float, ...]] = [()] * len(samples)
        for indices in microbatches(list(map(num_tokens, samples)), self.microbatch_tokens):
            batch = collate([samples[i] for i in indices], device=self.model.device)
            parts = probabilities(state_logits(self.model, batch)).split(batch.num_actions)
            for i, part in zip(indices, parts, strict=True):
                rows[i] = tuple(part.tolist())
        return rows

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises UserError where the policy's token ids mean something else to this model."""
        own, theirs = self.tokenizer.get_vocab(), tokenizer.get_vocab()
        differing = [token for token, i in theirs.items() if own.get(token) != i]
        if differing:
            raise UserError(
                f"reward model {self.name}: {len(differing)} of the policy's {len(theirs)} tokens have other ids in "
                f"its vocabulary, such as {min(differing)!r}, and it is read at the policy's own tokens; choose one "
                "with the policy's tokenizer, or let it grade whole responses ([grading.reward_model])"
            )

    def memory(self) -> dict[str, float]:
        size = sum(parameter.nbytes for parameter in self.model.parameters())
        return {"memory/reward_model_parameters_mb": size / 2**20}

    def _check_lengths(self, samples: Sequence[Sample]) -> None:
        longest, limit = max(map(num_tokens, samples), default=1) - 1, longest_prompt(self.model) + 1
        if longest > limit:
            raise UserError(
                f"reward model {self.name}: a response with its prompt has {longest} tokens, and the model's context "
                f"is {limit}; lower sampling.max_new_tokens, or choose another"
            )


def load_reward_model(config: RewardModelConfig, *, device: torch.device | str = "cpu") -> RewardModel:
    """From a folder or the hub: safetensors, no remote code. Raises UserError for what is no reward model."""
    name = newest_checkpoint(config.path)
    model, tokenizer = load_classifier(name, device=device), load_tokenizer(name)
    check_vocabulary(tokenizer, model, name)
    check_prefix_logits(model, name)
    return RewardModel(model, tokenizer, name, microbatch_tokens=config.microbatch_tokens)


def newest_checkpoint(path: str) -> str:
    """The folder of a run stands for its last checkpoint, any other name for itself."""
    return str(max(Path(path).expanduser().glob("checkpoints/iteration-*"), default=path, key=str))


def state_sample(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], states: Sequence[int]) -> Sample:
    """A row whose actions stand for `states`: t is the one before token t of the response, in [0, L]."""
    wanted = set(states)
    # One more token, which no state sees, makes room for the state after the last.
    return make_sample(prompt_ids, (*response_ids, 0), tuple(t in wanted for t in range(len(response_ids) + 1)))


def state_logits(model: Any, batch: Batch) -> torch.Tensor:  # [N, C]
    """Of every state that the batch stands for, in fp32 or wider."""
    output = model.base_model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    logits_NC = value_head(model)(output.last_hidden_state[batch.action_mask_BT])
    return logits_NC if logits_NC.dtype == torch.float64 else logits_NC.float()


def probabilities(logits_NC: torch.Tensor) -> torch.Tensor:  # [N]
    return logits_NC[:, 0].sigmoid() if logits_NC.shape[1] == 1 else logits_NC.softmax(-1)[:, -1]


@torch.no_grad()
def check_prefix_logits(model: Any, name: str) -> None:
    """Raises UserError where one forward does not give what the model itself says of every prefix alone.

    So it does for models that look ahead, and for those whose output is more than a linear head's.
    """
    num_labels = model.config.num_labels
    if num_labels not in (1, 2):
        raise UserError(
            f"reward model {name}: it has {num_labels} classes; one logit, or two classes of which the last is right, "
            "can be read as one number"
        )
    pad, size = model.config.pad_token_id, model.get_input_embeddings().num_embeddings
    ids = tuple(i % size for i in range(9) if i % size != pad)
    try:
        batch = collate([state_sample(ids[:1], ids[1:], range(len(ids)))], device=model.device)
        ours_NC = state_logits(model, batch)
        prefixes = [batch.input_ids_BT[:, : t + 1] for t in range(len(ids))]
        theirs_NC = torch.stack([model(input_ids=ids_BT).logits.reshape(-1, num_labels)[-1] for ids_BT in prefixes])
        same = torch.allclose(ours_NC, theirs_NC.float(), rtol=1e-3, atol=1e-4)
    except (RuntimeError, TypeError, ValueError, StopIteration):
        same = False
    if not same:
        raise UserError(
            f"reward model {name}: {model.config.model_type} does not say of a prefix what it says at the prefix's "
            "last token within a longer text (it looks ahead, or has more than a linear head); choose a causal model"
        )
