"""No number without a source: the pages' figures are those of the committed files, and nothing else has digits."""

from __future__ import annotations

import re

import pytest
from figures import NOT_PROSE, Document, blocks, documents, problems, with_block

DOCUMENTS = {document.path.name: document for document in documents()}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_number_has_a_source(name):
    assert problems(DOCUMENTS[name], DOCUMENTS[name].path.read_text()) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_any_other_digit_is_noticed(name):
    """Every tenth of the digits that are not code, one at a time."""
    text = DOCUMENTS[name].path.read_text()
    code = [match.span() for match in NOT_PROSE.finditer(text)]
    places = [m.start() for m in re.finditer(r"\d", text) if not any(a <= m.start() < b for a, b in code)]
    assert len(places) >= 20
    for place in places[::10]:
        other = str((int(text[place]) + 1) % 10)
        assert problems(DOCUMENTS[name], text[:place] + other + text[place + 1 :]), text[place - 30 : place + 30]


def test_the_transcript_is_checked_too():
    document = DOCUMENTS["quickstart.md"]
    text = document.path.read_text()
    place = text.index("reward 0.") + len("reward 0.")
    other = str((int(text[place]) + 1) % 10)
    assert problems(document, text[:place] + other + text[place + 1 :])


def test_a_new_number_needs_a_source_and_a_lost_claim_is_missed(tmp_path):
    document = Document(tmp_path / "page.md", ["is .5 [.4, .6]"], ["95 %"])
    assert problems(document, "It is .5\n[.4, .6], a 95 % interval (`x1`, [see](y2.md), GSM8K).") == []
    (found,) = problems(document, "It is .5 [.4, .6], a 95 % interval of 7.")
    assert found.endswith("no source for: It is .5 [.4, .6], a 95 % interval of 7.")
    assert len(problems(document, "It is .5 [.4, .7], a 95 % interval.")) == 2
    assert len(problems(document, "A 95 % interval.")) == 1


@pytest.mark.parametrize(("path", "name", "content"), blocks(), ids=[name for _, name, _ in blocks()])
def test_tables_are_those_of_the_files(path, name, content):
    text = path.read_text()
    assert with_block(text, name, content) == text
    assert with_block(text, name, content + "7") != text
