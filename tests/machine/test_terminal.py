import pytest

from vineppo.machine.terminal import printable


@pytest.mark.parametrize("text", ["plain\n\ttext", "caf\u00e9 \u4e2d\u6587 \U0001f600", "[red]not markup[/red]", ""])
def test_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08\x7f\x9b", "a\\rb\\x08\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert printable(text) == shown
    assert printable(printable(text)) == printable(text)
