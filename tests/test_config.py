import pytest

from vineppo.config import Config, apply_overrides, diff, flatten, read_toml, validate, write_toml
from vineppo.types import UserError


class Inner(Config):
    num_vines: int = 9
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


class Outer(Config):
    seed: int
    credit: Inner = Inner()


def problem(tree) -> str:
    with pytest.raises(UserError) as error:
        validate(Outer, tree, source="my.toml")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_keys_name_the_nearest_known_one():
    assert problem({"seed": 1, "credit": {"num_vine": 3}}) == (
        "my.toml: unknown key 'credit.num_vine'; did you mean 'num_vines'?"
    )
    assert "known keys: credit, seed" in problem({"seed": 1, "zzz": 3})


def test_wrong_types_ranges_and_missing_keys_are_named():
    assert "credit.num_vines = 'many'" in problem({"seed": 1, "credit": {"num_vines": "many"}})
    assert "'seed' is required" in problem({})
    assert "credit.top_p = nan" in problem({"seed": 1, "credit": {"top_p": float("nan")}})


def test_all_problems_are_reported_at_once():
    assert problem({"credit": {"a": 1}}).count(";") >= 1


def test_overrides_are_toml_values_or_plain_text():
    tree = apply_overrides({"seed": 1, "a": {"b": 1}}, ["a.b=2e-6", "a.c=[1, 2]", "d.e=text", 'd.f="1"', "seed=3"])
    assert tree == {"seed": 3, "a": {"b": 2e-6, "c": [1, 2]}, "d": {"e": "text", "f": "1"}}


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=3"])
def test_malformed_overrides(override):
    with pytest.raises(UserError, match="override"):
        apply_overrides({"seed": 1}, [override])


def test_overrides_do_not_change_the_tree_they_are_applied_to():
    tree = {"a": {"b": 1}}
    apply_overrides(tree, ["a.b=2"])
    assert tree == {"a": {"b": 1}}


def test_a_written_config_reads_back_equal(tmp_path):
    config = Outer(seed=3, credit=Inner(stop=("\n\n\nProblem:", 'a"b')))
    write_toml(config, tmp_path / "r.toml")
    assert validate(Outer, read_toml(tmp_path / "r.toml"), source="r") == config


def test_unreadable_recipes(tmp_path):
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(UserError, match=r"bad\.toml: not valid TOML"):
        read_toml(tmp_path / "bad.toml")
    with pytest.raises(UserError, match="no such recipe"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(UserError, match="folder"):
        read_toml(tmp_path)


def test_diff_names_the_dotted_keys():
    assert diff(Outer(seed=1), Outer(seed=1, credit=Inner(num_vines=3))) == {"credit.num_vines": (9, 3)}
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
