from itertools import product

from vineppo.seeding import derive_seed


def test_paths_that_spell_the_same_bytes_get_different_seeds():
    paths = [("ab", "c"), ("a", "bc"), ("abc",), ("1",), (1,), ((1,),), ((1, 2),), (1, 2), ("12",), (12,), ((),), ()]
    assert len({derive_seed(*path) for path in paths}) == len(paths)


def test_seeds_are_stable_across_processes_and_versions():
    assert derive_seed(0, 3, "vine", "gsm8k/train/17", (5, 6), 2) == 499352581432605746


def test_seeds_of_a_large_grid_do_not_collide_and_fill_63_bits():
    seeds = {
        derive_seed(0, iteration, "policy", f"p/{i}", g) for iteration, i, g in product(range(20), range(100), range(8))
    }
    assert len(seeds) == 16000
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):  # each bit is set in half of them, within 5 standard errors
        assert abs(sum(seed >> bit & 1 for seed in seeds) - 8000) < 5 * 63.3
