"""What an argument of the command line may be. argparse turns the errors into one that names the option."""

from __future__ import annotations

import argparse
from pathlib import Path

from vineppo.config import shorten, unusable


def seed_list(text: str) -> list[int]:
    try:
        seeds = [seed(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shorten(repr(text))} is not a list of numbers like 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{shorten(repr(text))} has a seed twice")
    return seeds


def seed(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{shorten(text)} does not fit in 64 bits")
    return number


def word(text: str) -> str:
    if not text.strip() or unusable(text):
        raise argparse.ArgumentTypeError(f"{shorten(repr(text))} is empty, not UTF-8, or has a NUL in it")
    return text


def path_name(text: str) -> Path:
    return Path(word(text))
