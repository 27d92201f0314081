"""Cuts are stopping times: a response that is fed token by token never gains or loses a boundary that lies behind.

What the paper's rules do is here too: the same laws fail for them, which is why only recipes/paper/ has them.
"""

import random
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
from tasks.test_tasks import GSM8K_ROWS, MATH_ROWS, NAMES, SOUP, tasks  # noqa: F401 (a fixture)
from test_segments import make_byte_tokenizer, make_sentencepiece_like_tokenizer

from vineppo.cutting import needs_what_follows
from vineppo.environment import CUT_OFF, Environment, GradedCompletion, State
from vineppo.models.make import make_symbol_tokenizer
from vineppo.rollouts import make_rollout
from vineppo.segments import cut_lines, cut_tokens, decode_pieces, looks_ahead
from vineppo.tasks.gsm8k import GSM8K, GSM8KConfig
from vineppo.tasks.latex import MIN_CHARS, cut_latex
from vineppo.tasks.math import MATH, MATHConfig
from vineppo.tasks.paper_segments import cut_before_lines, cut_finished_latex
from vineppo.types import Completion, Grade, Problem, Rollout, SamplingParams, UserError

SOLUTION = (
    "We have $x = 3.14$ and e.g. $y = 2.$ Since $x > y$, it follows that (as above) 3. is no sentence yet.\n\n\n"
    "Adding both, \\begin{align*}\nx + y &= 3.14 + 2 \\\\\n&= 5.14.\n\\end{align*} So it is 5.14. Then we are done, "
    "because of Prof. A. Who else? Is it $5!$ or so! The answer is $\\boxed{5.14}$.\n#### 5.14\n"
)
RULES = {
    "gsm8k, arithmetic": cut_lines,
    "math": lambda text: cut_latex(text, 100),
    "math, short segments": lambda text: cut_latex(text, MIN_CHARS),
}
PAPER = {"gsm8k": cut_before_lines, "math": lambda text: cut_finished_latex(text, 100)}
TOKENIZERS = {
    "bytes": make_byte_tokenizer(),
    "sentencepiece": make_sentencepiece_like_tokenizer(),
    "characters": make_symbol_tokenizer([*"abcx=+\n# 0123456789.$,\\", ".\n\n", "\n\n", "so.", "\\\\", "$$", " then "]),
}


def texts(seed: int, n: int) -> Iterator[str]:
    """Solutions, shuffled ones, soups of what matters to the rules, and any characters."""
    yield SOLUTION
    yield from (row["answer"] for row in GSM8K_ROWS)
    yield from (row["solution"] for row in MATH_ROWS)
    rng = random.Random(seed)
    characters = [*"ab \n\n.$\\,;:=+()[]{}12!?#", "数", "\x85", "\u2028", "\ufffd"]
    words = SOLUTION.split(" ")
    for _ in range(n):
        yield " ".join(rng.choices(words, k=rng.randint(1, 40)))
        yield "".join(rng.choices(SOUP, k=rng.randint(0, 40)))
        yield "".join(rng.choices(characters, k=rng.randint(0, 120)))


def violations(segment: Callable[[str], list[int]], some: Iterator[str]) -> int:
    return sum(looks_ahead(segment, text, n) for text in some for n in range(len(text) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_task_cuts_by_what_stands_before(tasks, name):  # noqa: F811
    assert violations(tasks[name].segment, texts(0, 8)) == 0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_character_moves_a_cut_behind_it(rule):
    assert violations(rule, texts(1, 20)) == 0


@pytest.mark.parametrize("rule", PAPER.values(), ids=PAPER)
def test_the_papers_cuts_look_ahead(rule):
    assert violations(rule, iter([SOLUTION])) > 0
    assert violations(rule, texts(2, 3)) > 100


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_no_token_moves_a_boundary_behind_it(tokenizer, rule):
    """Whatever the tokens: characters over several, several line breaks in one, end tokens in the middle.

    Byte fallback takes text back where bytes come behind it that are no UTF-8, or not yet: there is no law for these.
    """
    takes_back = tokenizer is TOKENIZERS["sentencepiece"]
    words = [" ".join(SOLUTION.split(" ")[i : i + 8]) for i in range(0, 40, 8)]
    known = None if tokenizer is not TOKENIZERS["characters"] else {*tokenizer.get_vocab(), "\n", " "}
    rng, found = random.Random(3), 0

    def boundaries(token_ids: list[int]) -> list[int]:
        pieces = decode_pieces(tokenizer, token_ids)
        return cut_tokens(pieces, rule("".join(pieces)))

    for text in [*words, "".join(rng.choices("a1 \n.$,", k=60)), "one\n\n数学\n🎉\n\n.\n"]:
        spelled = [
            token for character in text if not known or character in known for token in tokenizer.encode(character)
        ]
        drawn = [] if takes_back else [rng.randrange(len(tokenizer)) for _ in range(40)]
        for token_ids in (spelled, drawn):
            whole = boundaries(token_ids) if token_ids else []
            found += len(whole)
            decoded = tokenizer.decode(token_ids, skip_special_tokens=True)
            for n in range(1, len(token_ids)):
                if not takes_back or decoded.startswith(tokenizer.decode(token_ids[:n], skip_special_tokens=True)):
                    assert boundaries(token_ids[:n]) == [index for index in whole if index <= n]
    assert found > 2


STOP = "\n\n\nProblem:"


def environment_of(task: Any, stop: str = STOP) -> Environment:
    return Environment(
        engine=cast(Any, None),
        task=task,
        grader=cast(Any, None),
        tokenizer=TOKENIZERS["bytes"],
        params=SamplingParams(stop=(stop,)),
        max_prompt_tokens=100,
    )


def rollout_of(task: Any, token_ids: list[int], grade: Grade = CUT_OFF, stop: str = STOP) -> Rollout:
    """As the program makes it of these tokens."""
    environment = environment_of(task, stop)
    completion = Completion(tuple(token_ids), (0.0,) * len(token_ids), "stop", 0)
    graded = GradedCompletion(completion, environment.text(token_ids), grade)
    return make_rollout(environment, State(Problem("p", "", ""), (0,)), graded, len(token_ids))


class Lines:
    isolate = False

    def segment(self, response: str) -> list[int]:
        return cut_lines(response)


@pytest.mark.parametrize("stop", [STOP, "\n", "\n\n", "2\n\n", "."])
@pytest.mark.parametrize("text", ["one\n2\n\n\nProblem:", "one 2.\n\n", "1\n\n\n", SOLUTION[:120] + STOP])
def test_what_a_stop_string_leaves_out_is_cut_as_it_was_written(stop, text):
    """So a rollout has the boundaries that a longer one has so far, even where the stop string is still on its way."""
    tokens = [token for character in text for token in TOKENIZERS["bytes"].encode(character)]
    for task in (Lines(), math_task("causal")):
        whole = rollout_of(task, tokens, stop=stop).boundaries
        for n in range(1, len(tokens)):
            assert rollout_of(task, tokens[:n], stop=stop).boundaries == (0, *(b for b in whole[1:-1] if b < n), n)


def test_an_end_of_text_behind_a_line_is_a_segment():
    tokenizer = TOKENIZERS["bytes"]
    (eos,) = tokenizer.encode("<eos>")
    line = [*tokenizer.encode("x"), *tokenizer.encode("\n")]
    assert rollout_of(Lines(), [*line, eos]).boundaries == (0, 2, 3)
    assert rollout_of(Lines(), line).boundaries == (0, 2)
    assert rollout_of(Lines(), [line[0], eos]).boundaries == (0, 2)
    assert rollout_of(Lines(), [eos]).boundaries == (0, 1)


def test_rewards_of_the_graded_pieces_are_earned_where_these_end():
    """The text that is graded, "x\\ny", has two pieces; the tokens go on to "x\\ny\\n\\n\\nProblem:"."""
    tokens = [token for character in "x\ny" + STOP for token in TOKENIZERS["bytes"].encode(character)]
    grade = Grade(3.0, "wrong", (1.0, 2.0))
    assert rollout_of(Lines(), tokens, grade).segment_rewards == (1.0, 0.0, 2.0)
    closed = rollout_of(Lines(), tokens, grade, stop="y")  # "x\n" is all that is graded, and that it ends there
    assert closed.segment_rewards == (1.0, 0.0, 2.0)
    (eos,) = TOKENIZERS["bytes"].encode("<eos>")
    assert rollout_of(Lines(), [*tokens[:2], eos], grade).segment_rewards == (1.0, 2.0)


def test_a_task_whose_cuts_do_not_rise_is_named():
    class Backwards(Lines):
        def segment(self, response: str) -> list[int]:
            return [2, 1]

    with pytest.raises(UserError, match=r"Backwards\.segment\(\) gave \[2, 1\] for a text of 1 characters"):
        rollout_of(Backwards(), TOKENIZERS["bytes"].encode("x"))


@pytest.mark.parametrize(("segments", "notices"), [("causal", False), ("paper", True)])
def test_a_rollout_tells_of_a_rule_that_looks_ahead(segments, notices):
    tokens = [token for character in SOLUTION for token in TOKENIZERS["bytes"].encode(character)]
    for task in (math_task(segments), gsm8k_task(segments)):
        assert needs_what_follows(environment_of(task), rollout_of(task, tokens)) == notices
    late = type("Late", (Lines,), {"segment": lambda self, text: [cut for cut in cut_lines(text) if cut < len(text)]})
    assert needs_what_follows(environment_of(late()), rollout_of(late(), tokens))  # an eos joins behind a line


def math_task(segments: Any) -> MATH:
    task = MATH.__new__(MATH)  # without its files
    task.config = MATHConfig(path="none", segments=segments)
    return task


def gsm8k_task(segments: Any) -> GSM8K:
    return GSM8K(GSM8KConfig(path="none", segments=segments))


def parts_of(text: str, cuts: list[int]) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize(
    "parts",
    [
        ["First we look at the number $a = 1. B = 2$ here.", " Then we add \\[x = 1.\\]", " Therefore it is done.", ""],
        ["The value of it is $x = 12.$", " and then we go on"],
        ["The value of it is 3.14, as e.g. Mr. A. B. says.", " So"],
        ["The value of it is 3.5. ", "So"],
        ["There are $5!$ ways to do it, and 5! of them"],
        ["Yes. No. Maybe it is.", "\n\nAfter a blank line it goes on.", ""],
        ["A line that is long enough\n", "Short\nAnd one more that is not.", ""],
        ["So we have $a, b, \\dots.$", " Then"],
        ["So we have $a, b, ...$ as a list"],
        ["He pays \\$5. Then he is broke.", "\n"],
        ["A $ that nobody closes. See.\n\n", "The text goes on, as it should.", ""],
        ["It is (as was said before).", " So"],
    ],
)
def test_sentences_and_lines_outside_of_formulas_are_segments(parts):
    text = "".join(parts)
    assert parts_of(text, cut_latex(text, 1000)) == parts


@pytest.mark.parametrize("formula", ["\\[x = 1.\\]", "$$x = 1.$$", "$x = 1.$", "\\(x = 1?\\)",
                                     "\\begin{align*}x &= 1. \\\\ \\end{align*}",
                                     "\\[\\begin{aligned}x &= \\text{one.}\\end{aligned}\\]"])  # fmt: skip
@pytest.mark.parametrize("follower", ["", " ", "Then", " then", " $x$", "\n"])
def test_a_formula_that_ends_a_sentence_ends_a_segment_whatever_follows(formula, follower):
    before = f"Thus the number is {formula}"
    assert cut_latex(before + follower, 1000)[0] == len(before)
    unfinished = before.replace(".", "").replace("?", "")
    assert len(unfinished) not in cut_latex(unfinished + follower, 1000)


def test_a_long_part_ends_at_its_next_soft_break():
    words = "and so it goes on without any end"
    parts = [f"{words}, {words},", f" as 1,000 or 1:2 say, {words};", f" {words} {words} {words}"[:59]]
    text = "".join(parts)
    assert parts_of(text, cut_latex(text, 50)) == parts
    blanks = " ".join([words] * 10)
    assert all(100 < len(part) < 115 for part in parts_of(blanks, cut_latex(blanks, 50))[:-1])


def test_a_formula_is_cut_only_where_a_part_is_too_long():
    text = "$x = " + " = ".join(["a + b"] * 20) + "$"
    assert cut_latex(text, 1000) == []
    parts = parts_of(text, cut_latex(text, 30))
    assert all(part[-1] in "=+" and 60 < len(part) < 66 for part in parts[:-1])


def test_long_formulas_are_cut_behind_their_rows_first():
    row = "f(x) &= (a + b)(c + d) = 12345"
    text = "\\begin{align*}" + " \\\\ ".join([row] * 8) + "\\end{align*}"
    parts = parts_of(text, cut_latex(text, 60))
    assert all(part.endswith("\\\\") and len(part) > 60 for part in parts[:-1])
    assert len(parts) == 4


@pytest.mark.parametrize(
    "unit", ["$", "$$", "\\", "\\[", "\\begin{a}", "[asy]", "\n", " \n", ".", "a.", "1. ", ",", "}", "]"]
)
def test_cutting_is_linear_in_hostile_texts(unit):
    seconds = []
    for length in (2_000, 16_000):
        start = time.process_time()
        cut_latex(unit * length, 100)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 24 * seconds[0] + 0.1  # 8 times the text; quadratic would be 64


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("\nA=1\nB=2\n#### 3\n", ["\nA=1", "\nB=2\n#### 3\n"]),
        ("A\n\n\nB", ["A", "\n\n\nB"]),
        ("A\nB\n\n#### 3", ["A", "\nB\n\n#### 3"]),
        ("#### 3\nand more", ["#### 3", "\nand more"]),
        ("\n \n", ["\n \n"]),
        ("", [""]),
    ],
)
def test_paper_lines_begin_with_their_break_and_the_answer_joins_the_last(text, segments):
    assert parts_of(text, gsm8k_task("paper").segment(text)) == segments


def test_paper_latex_is_cut_between_sentences_and_long_parts_are_halved():
    formula = "$a = 1. B = 2$"
    text = f"First we look at the number {formula} here. Then we add \\[x = 1.\\] Therefore it is done. "
    parts = parts_of(text, cut_finished_latex(text, 1000))
    assert len(parts) == 3
    assert all(part.count("$") in (0, 2) and part.count("\\[") == part.count("\\]") for part in parts)
    assert all(0 < cut < len(text) for cut in cut_finished_latex(text, 1000))
    long = "$x = " + " = ".join(["a + b"] * 20) + "$"
    assert cut_finished_latex(long, 1000) == []
    assert max(map(len, parts_of(long, cut_finished_latex(long, 60)))) <= 60
    rows = "\\begin{align*}" + " \\\\ ".join(["f(x) &= (a + b)(c + d) = 12345"] * 8) + "\\end{align*}"
    cuts = cut_finished_latex(rows, 60)
    assert len(cuts) == 7
    assert all(rows[:cut].endswith("\\\\") for cut in cuts)


@pytest.mark.parametrize("formula", ["\\[x = 1.\\]", "$$x = 1!$$", "\\begin{align*}x &= 1. \\\\ \\end{align*}",
                                     "\\[\\begin{aligned}x &= \\text{one.}\\end{aligned}\\]"])  # fmt: skip
@pytest.mark.parametrize("gap", ["", " "])
@pytest.mark.parametrize("follower", ["Setting all of it to one, we go on", "$x$ is what was wanted, so we go on"])
def test_paper_latex_ends_a_displayed_formula_that_ends_a_sentence_before_a_capital(formula, gap, follower):
    before = f"Thus the number is {formula}"
    assert cut_finished_latex(before + gap + follower, 1000) == [len(before)]
    unfinished = before.replace(".", "").replace("!", "")
    assert cut_finished_latex(unfinished + gap + follower, 1000) == []
    assert cut_finished_latex(before + gap + follower.lower().replace("$x$", "x"), 1000) == []
