"""Pairs: which responses meet which, how often, and that they are the same whatever else is there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
from scipy import stats

from vineppo.methods.dpo import DPOConfig, Pair, add_reference, load_pairs, make_pairs, save_pairs
from vineppo.sample import Sample
from vineppo.types import Completion, Group, Problem, Rollout


def make_rollout(name: str, response: tuple[int, ...], reward: float) -> Rollout:
    completion = Completion(response, (0.0,) * len(response), "eos", 0)
    verdict = "correct" if reward else "wrong"
    boundaries = (0, len(response))
    return Rollout(Problem(name, "p", "a"), (7, len(name)), completion, "", reward, verdict, boundaries, 20)


def make_group(name: str, num_right: int, num_wrong: int, repeats: int = 1) -> Group:
    """Right responses are even, wrong ones odd, in a mixed order; each occurs `repeats` times."""
    responses = [(2 * i, 2 * i) for i in range(num_right)] + [(2 * i + 1, 0) for i in range(num_wrong)]
    rollouts = [make_rollout(name, response, float(response[0] % 2 == 0)) for response in responses * repeats]
    return random.Random(name).sample(rollouts, len(rollouts))


def texts(pairs: list[Pair]) -> list[tuple[tuple[int, ...], ...]]:
    return [(p.chosen.prompt_ids, p.chosen.response_ids, p.rejected.response_ids) for p in pairs]


@pytest.mark.parametrize("most", [1, 5, 11, 12, 64])
def test_pairs_are_distinct_right_beats_wrong_and_no_problem_has_too_many(most):
    groups = [make_group("a", 3, 4, repeats=3), make_group("bb", 2, 2), make_group("ccc", 5, 1)]
    pairs = make_pairs(groups, DPOConfig(max_pairs_per_problem=most), seed=0)
    assert len(set(texts(pairs))) == len(pairs) == min(most, 12) + min(most, 4) + min(most, 5)
    for pair in pairs:
        assert pair.chosen.response_ids[0] % 2 == 0
        assert pair.rejected.response_ids[0] % 2 == 1
        assert pair.chosen.prompt_ids == pair.rejected.prompt_ids
    lengths = Counter(pair.chosen.prompt_ids[1] for pair in pairs)
    assert lengths == {1: min(most, 12), 2: min(most, 4), 3: min(most, 5)}


def test_problems_that_lack_either_kind_have_none():
    groups = [make_group("a", 3, 0), make_group("bb", 0, 3), make_group("ccc", 1, 1)]
    assert len(make_pairs(groups, DPOConfig(), seed=0)) == 1
    assert make_pairs(groups[:2], DPOConfig(), seed=0) == []


def test_a_reward_at_the_threshold_is_right():
    group = [make_rollout("a", (i,), reward) for i, reward in enumerate((0.4, 0.5, 0.9))]
    pairs = make_pairs([group], DPOConfig(reward_threshold=0.5), seed=0)
    assert [(p.chosen.response_ids, p.rejected.response_ids) for p in pairs] == [((1,), (0,)), ((2,), (0,))]


def test_which_pairs_are_drawn_is_uniform():
    """3 of 12, with 3,000 seeds: each pair is in a quarter of the draws."""
    group = make_group("a", 3, 4)
    config = DPOConfig(max_pairs_per_problem=3)
    drawn = Counter(text for seed in range(3000) for text in texts(make_pairs([group], config, seed=seed)))
    assert len(drawn) == 12
    # without replacement within a draw, so counts vary less than chi-square allows
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-3


def test_the_seed_decides_and_other_problems_do_not_matter():
    groups = [make_group(name, 4, 4) for name in ("a", "bb", "ccc")]
    config = DPOConfig(max_pairs_per_problem=5)
    together = make_pairs(groups, config, seed=1)
    assert make_pairs(groups, config, seed=1) == together
    assert make_pairs(groups, config, seed=2) != together
    alone = [make_pairs([group], config, seed=1) for group in groups]
    assert list(chain(*alone)) == together
    assert make_pairs(groups[::-1], config, seed=1) == list(chain(*alone[::-1]))


def score(samples: Sequence[Sample]) -> list[Sample]:
    """Log-probs that tell prompt and response."""
    return [
        replace(s, old_logprobs=s.advantages, ref_logprobs=tuple(-0.1 * (s.prompt_ids[1] + i) for i in s.response_ids))
        for s in samples
    ]


def test_every_response_is_scored_once_and_comes_back_to_its_pairs():
    pairs = make_pairs([make_group("a", 3, 4), make_group("bb", 3, 4)], DPOConfig(), seed=0)
    asked: list[Sample] = []

    def count(samples):
        asked.extend(samples)
        return score(samples)

    scored = add_reference(pairs, count)
    assert len(asked) == len(set(asked)) == 14
    assert texts(scored) == texts(pairs)
    for pair in scored:
        assert [pair.chosen, pair.rejected] == score([pair.chosen, pair.rejected])


def test_saved_pairs_come_back(tmp_path):
    pairs = add_reference(make_pairs([make_group("a", 3, 4)], DPOConfig(), seed=0), score)
    save_pairs(pairs, tmp_path)
    for one, other in zip(load_pairs(tmp_path), pairs, strict=True):
        for ours, theirs in ((one.chosen, other.chosen), (one.rejected, other.rejected)):
            assert (ours.prompt_ids, ours.response_ids) == (theirs.prompt_ids, theirs.response_ids)
            assert ours.ref_logprobs == theirs.ref_logprobs
