import random

from vineppo.batch import collate, microbatches, num_tokens
from vineppo.methods.epochs import split
from vineppo.sample import Sample


def make_sample(prompt: int, response: int, first: int = 0) -> Sample:
    ids = range(first, first + prompt + response)
    nothing = (0.0,) * response
    return Sample(tuple(ids[:prompt]), tuple(ids[prompt:]), nothing, nothing)


def make_samples(n: int) -> list[Sample]:
    rng = random.Random(0)
    return [make_sample(rng.randint(1, 40), rng.randint(1, 60), first=100 * i) for i in range(n)]


def test_a_batch_by_hand():
    batch = collate([make_sample(2, 3, first=10), make_sample(1, 2, first=50)])
    assert batch.input_ids_BT.tolist() == [[10, 11, 12, 13], [50, 51, 52, 0]]
    assert batch.target_ids_BT.tolist() == [[11, 12, 13, 14], [51, 52, 0, 0]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.action_mask_BT.tolist() == [[False, True, True, True], [True, True, False, False]]


def test_the_action_targets_are_the_responses_in_order():
    samples = make_samples(20)
    batch = collate(samples)
    actions = batch.target_ids_BT[batch.action_mask_BT].tolist()
    assert actions == [token for sample in samples for token in sample.response_ids]


def test_microbatches_hold_every_sample_once_within_the_bound():
    samples = make_samples(50)
    for bound in (1, 120, 500, 10**6):
        groups = microbatches(list(map(num_tokens, samples)), bound)
        assert sorted(i for group in groups for i in group) == list(range(50))
        for group in groups:
            longest = max(len(samples[i].prompt_ids) + len(samples[i].response_ids) for i in group)
            assert longest * len(group) <= bound or len(group) == 1
    assert len(microbatches(list(map(num_tokens, samples)), 10**6)) == 1


def test_a_seed_decides_the_order_and_no_sample_is_dropped():
    samples = make_samples(21)
    minibatches = split(samples, 8, seed=3)
    assert [len(minibatch) for minibatch in minibatches] == [8, 8, 5]
    assert sorted(s.prompt_ids for m in minibatches for s in m) == sorted(s.prompt_ids for s in samples)
    assert minibatches == split(samples, 8, seed=3)
    assert minibatches != split(samples, 8, seed=4)
