"""What it would save to sum over the last decision of a response instead of sampling it (Rao-Blackwell).

    python benchmarks/last_decision.py --policy CHECKPOINT --out benchmarks/results/last-decision.json

Where an answer is one token of a few, its alternatives can all be graded. All tokens before it then get the mean of the
rewards, sum_a pi(a) R(a), in place of the one that was drawn; the answer itself keeps its own. That is unbiased and
needs no further token. In the chains of `vineppo exact` the last uncertain token is such an answer: RLOO with and
without it. In the quickstart's task the answer is copied from the line before: reported is the share of the reward's
variance that is decided there. CHECKPOINT is of the quickstart's policy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pvariance

import torch

from vineppo.credit.advantages import leave_one_out
from vineppo.exact.chain import CHAINS
from vineppo.exact.measure import Summary, full_text, make_methods, run
from vineppo.exact.methods import ROWS, Row
from vineppo.exact.world import World
from vineppo.exact.worlds import find_world
from vineppo.framing import encode_prompt
from vineppo.models.loading import load_policy_model
from vineppo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from vineppo.types import Assigned, Credit, Group

NUM_BATCHES, NUM_PROBLEMS, BUDGET = 200, 200, 128
ANSWER = "#### "


class IntegratedRLOO:
    """RLOO whose rewards are the values of the state before the last uncertain token, for all tokens before it."""

    def __init__(self, world: World):
        self.world = world

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        return Assigned([self.credits(group) for group in groups], {})

    def credits(self, group: Group) -> list[Credit]:
        traces = [self.world.trace(full_text(self.world, rollout)) for rollout in group]
        last = [max(t for t, certain in enumerate(trace.certain) if not certain) for trace in traces]
        rewards = [trace.values[t] for trace, t in zip(traces, last, strict=True)]
        return [
            Credit(r.boundaries, (advantage,) * t + (advantage + r.reward - mean,) * (len(r.token_ids) - t))
            for r, t, mean, advantage in zip(group, last, rewards, leave_one_out(rewards), strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    worlds = {rules.name: of_world(find_world(rules.name)) for rules in CHAINS}
    result = {"num_batches": NUM_BATCHES, "worlds": worlds, "arithmetic": of_task(options.policy)}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def of_world(world: World) -> dict[str, float]:
    """RLOO's variance with the last decision summed over, RLOO = 1, at the same tokens."""
    methods = make_methods(world, [ROWS[0], Row("integrated", lambda world, _: IntegratedRLOO(world))])
    tallies, yardstick = run(world, methods, NUM_BATCHES, seed=0)
    plain, integrated = (Summary(method, tally, yardstick) for method, tally in zip(methods, tallies, strict=True))
    return integrated.against(plain, "sampled")


@torch.no_grad()
def of_task(policy: str) -> dict[str, float]:
    """Of responses that come to an answer: how sure it is, and how much of the reward's variance is decided there."""
    tokenizer, model = load_policy_model(policy)
    task = Arithmetic(ArithmeticConfig())
    torch.manual_seed(0)
    sure, decided, rewards = [], [], []
    for problem in task.sample(NUM_PROBLEMS, seed=1):
        prompt = torch.tensor([encode_prompt(tokenizer, problem.prompt)])
        (ids,) = model.generate(prompt, do_sample=True, max_new_tokens=BUDGET, top_k=0, pad_token_id=0)
        before = tokenizer.decode(ids[prompt.shape[1] :], skip_special_tokens=True).partition(ANSWER)[0] + ANSWER
        state = torch.tensor([[*prompt[0].tolist(), *tokenizer.encode(before, add_special_tokens=False)]])
        probs_V = model(input_ids=state).logits[0, -1].softmax(-1)
        right = float(probs_V[tokenizer.convert_tokens_to_ids(problem.answer)])
        sure.append(float(probs_V.max()))
        decided.append(right * (1 - right))
        rewards.append(task.grade(problem, tokenizer.decode(ids[prompt.shape[1] :], skip_special_tokens=True)).reward)
    return {"mean_largest_probability": fmean(sure), "share_of_variance": fmean(decided) / pvariance(rewards)}


if __name__ == "__main__":
    main()
