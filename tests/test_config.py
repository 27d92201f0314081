import datetime
import json
import os
from pathlib import Path

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


def test_all_problems_are_reported_at_once_and_of_very_many_the_first():
    assert problem({"credit": {"a": 1}}).count(";") >= 1
    many = problem({"seed": "x" * 10_000} | {f"key{i}" * 100: i for i in range(1000)})
    assert "and 996 more" in many
    assert len(many) < 2000


@pytest.mark.parametrize(
    ("credit", "said"),
    [
        ({"num_vines": True}, "credit.num_vines = True: must be a whole number"),
        ({"num_vines": "3"}, "credit.num_vines = '3': must be a whole number"),
        ({"num_vines": 3.0}, "credit.num_vines = 3.0: must be a whole number"),
        ({"top_p": "1"}, "credit.top_p = '1': must be a number"),
        ({"top_p": False}, "credit.top_p = False: must be a number"),
        ({"top_p": datetime.date(2020, 1, 1)}, "credit.top_p = datetime.date(2020, 1, 1): must be a number"),
        ({"top_p": {"a": 1}}, "credit.top_p = {'a': 1}: must be a number"),
        ({"stop": "a"}, "credit.stop = 'a': must be a list"),
        ({"stop": [1]}, "credit.stop.0 = 1: must be text"),
        ({"stop": ["a", ""]}, "credit.stop.1 = '': must not be empty"),
        ({"stop": [["a"]]}, "credit.stop.0 = ['a']: must be text"),
        (3, "credit = 3: must be a section"),
        ([{"num_vines": 3}], "credit = [{'num_vines': 3}]: must be a section"),
        (None, "credit = None: must be a section"),
    ],
)
def test_nothing_is_taken_for_what_it_is_not(credit, said):
    assert said in problem({"seed": 1, "credit": credit})


def test_a_whole_number_is_a_number_and_a_list_is_a_tuple():
    config = validate(Outer, {"seed": 1, "credit": {"top_p": 1, "stop": ["a"]}}, source="my.toml")
    assert (config.credit.top_p, config.credit.stop) == (1.0, ("a",))


def test_overrides_are_toml_values_or_plain_text():
    tree = apply_overrides({"seed": 1, "a": {"b": 1}}, ["a.b=2e-6", "a.c=[1, 2]", "d.e=text", 'd.f="1"', "seed=3"])
    assert tree == {"seed": 3, "a": {"b": 2e-6, "c": [1, 2]}, "d": {"e": "text", "f": "1"}}


@pytest.mark.parametrize(
    "override",
    [
        "", "seed", "=3", "=", ".=3", ".seed=3", "a.=3", "a..b=3", " =3", "a b=3", '"a".b=3', "a[0]=3", "\u00e9=3",
        "seed.x=3", "seed.x.y=3", "b.c.d=3",
        f"a={'9' * 5000}", "a=0x" + "f" * 5000, f"a={2**63}", f"a=[{{b={-(2**63) - 1}}}]",
        "a=" + "[" * 5000, "a=" + "[" * 20 + "]" * 20, ".".join("a" * 5000) + "=1",
        "a=caf\udce9", "a=x\0y", 'a="\\u0000"', "a=['\udce9']",
    ],
    ids=lambda override: ascii(override)[:20],
)  # fmt: skip
def test_malformed_overrides(override):
    with pytest.raises(UserError, match="override") as error:
        apply_overrides({"seed": 1, "b": {"c": 1}}, [override])
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text", ["1\nother = 2", "1\n[b]", "{c = 1}\nother.d = 2", '"x"\nvalue2 = 3', "1\r\nother = 2", "[1]\n[[b]]"]
)
def test_a_line_break_in_a_value_brings_in_no_other_key(text):
    assert apply_overrides({"b": {}}, [f"a={text}"]) == {"a": text, "b": {}}


def test_values_of_several_lines_and_of_spaces():
    tree = apply_overrides({}, ['a="""x\ny"""', "b=[1,\n2]", " c.d = 3 ", "e=two words", "f=", "g==", "h=a=b"])
    assert tree == {"a": "x\ny", "b": [1, 2], "c": {"d": 3}, "e": "two words", "f": "", "g": "=", "h": "a=b"}


def test_the_last_override_wins_and_a_section_may_be_replaced():
    assert apply_overrides({"a": {"b": 1}}, ["a.c=1", "a={d=2}", "a.e=3", "a.e=4"]) == {"a": {"d": 2, "e": 4}}


def test_overrides_change_the_tree_they_are_applied_to_at_no_depth():
    tree = {"a": {"b": {"c": {"d": 1}}, "list": [{"e": 1}]}}
    before = json.dumps(tree)
    changed = apply_overrides(tree, ["a.b.c.d=2", "a.b.c.f=3", "a.b.g=4", "h.i.j=5"])
    changed["a"]["list"][0]["e"] = 6
    assert json.dumps(tree) == before


def test_a_written_config_reads_back_equal(tmp_path):
    config = Outer(seed=3, credit=Inner(stop=("\n\n\nProblem:", 'a"b')))
    write_toml(config, tmp_path / "r.toml")
    assert validate(Outer, read_toml(tmp_path / "r.toml"), source="r") == config


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = = 1", "line 1"),
        (b"a = 1\na = 2\n", "Cannot overwrite a value"),
        (b"[a]\n[a]", "line 2"),
        (b"a.b = 1\na = 2\n", "Cannot overwrite a value"),
        (b"a = 'x", "end of document"),
        (b"a = 1\0", "line 1"),
        (b'a = "\\u0000"', "a: text"),
        (b'a = "\\ud800"', "line 1"),
        (b"a = 2020-13-01", "line 1"),
        (b"\xff\xfea\0 \0=\0", "not UTF-8"),
        (b"a = 'caf\xe9'", "not UTF-8 text (byte 8)"),
        (b"a = " + b"9" * 5000, "digits"),
        (b"a = 0x" + b"f" * 5000, "64 bits"),
        (b"b = {a = [9223372036854775808]}", "b.a.0: a whole number that 64 bits cannot hold"),
        (b"a = " + b"[" * 5000, "deep"),
        (b"a = " + b"{a=" * 5000, "deep"),
        (b"a = " + b"[" * 50 + b"]" * 50, "deep"),
        (b".".join([b"a"] * 5000) + b" = 1", "deep"),
        (b"[" + b".".join([b"a"] * 5000) + b"]", "deep"),
        (b"#" * 300_000, "larger than 256 KiB"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_is_no_recipe(content, said, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_toml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for path, said in [
        (tmp_path / "none.toml", "no such recipe"),
        (tmp_path / "dangling", "no such recipe"),
        (tmp_path, "folder"),
        (tmp_path / "pipe", "neither a file nor a folder"),
        (Path("/dev/zero"), "neither a file nor a folder"),
    ]:
        with pytest.raises(UserError, match=said):
            read_toml(path)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_toml(tmp_path / "bom.toml") == {"a": 1}
    (tmp_path / "empty.toml").write_bytes(b"")
    assert read_toml(tmp_path / "empty.toml") == {}


def test_diff_names_the_dotted_keys():
    assert diff(Outer(seed=1), Outer(seed=1, credit=Inner(num_vines=3))) == {"credit.num_vines": (9, 3)}
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
