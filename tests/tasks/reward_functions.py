"""Reward functions as people have them, for TRL, for verifiers' rubrics, and for neither; right ones and wrong ones."""

import math
import time

from vineppo.tasks.answers.boxes import boxed_answer


def trl_length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def trl_city(prompts, completions, city, log_extra=None, log_metric=None, **columns):
    assert log_extra is not None
    assert log_metric is not None
    log_extra("city", city)
    log_metric("seen", 1.0)
    return [float(gold in completion) for completion, gold in zip(completions, city, strict=True)]


def trl_some(completions, country, **columns):
    """Does not apply where the country is not known."""
    return [None if land is None else float(land in text) for land, text in zip(country, completions, strict=True)]


def trl_chat(completions, prompts, **columns):
    assert prompts[0][0]["role"] == "user"
    return [0.5 * (message["role"] == "assistant") + ("?" in prompts[0][0]["content"]) for (message,) in completions]


async def trl_async(completions, **columns):
    return [1.0 for _ in completions]


def rubric_answer(completion, answer, state, info):
    assert state["completion"] == completion
    assert state["answer"] == answer
    return answer in completion and info["level"] == 3


async def rubric_async(completion, **everything):
    return 0.25 if everything["answer"] else 0.0


def short(response, answer):
    return response.endswith(answer)


def own_box(response, answer):
    return float(boxed_answer(response) == answer)


tiny = lambda response: 0.5  # noqa: E731  has no name of its own


class Scorer:
    """A function of a kind."""

    def __call__(self, response, answer):
        return len(response) - len(answer)


scorer = Scorer()


def no_response(prompt, answer):
    return 1.0


def two_for_one(completions):
    return [1.0, 1.0]


def bare_number(completions):
    return 1.0


def nothing(response):
    pass


def text(response):
    return "1.0"


def not_a_number(response):
    return math.nan


def wants_more(response, steps):
    return 1.0


def wants_tokens(completions, completion_ids, **columns):
    return [1.0]


def fails(response):
    return response[10**6]


def spins(response):
    while True:
        time.sleep(0)
