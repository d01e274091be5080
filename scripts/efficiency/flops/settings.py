"""read_settings: the arguments of flops.py, checked before anything is counted."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from hiprune.models.transformers_version import FIRST, require_transformers

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from scripts.efficiency.architectures import ARCHITECTURES, Architecture
from scripts.efficiency.flops.arguments import make_parser
from scripts.efficiency.flops.conventions import CONVENTIONS
from scripts.efficiency.flops.picture import picture_of
from scripts.efficiency.flops.work import Picture

LONGEST_SIDE = 100_000


@dataclass(frozen=True)
class Subject:
    """One model to count, with its picture and the budgets of its tables."""

    architecture: Architecture
    picture: Picture
    retentions: tuple[int | float, ...]

    def kept(self, retention: int | float) -> int:
        """N' over all views, each of which keeps int(N' / views); 0: too few for the views."""
        views = self.picture.views
        return HiPruneConfig(retention=retention).budget(self.picture.tokens) // views * views


@dataclass(frozen=True)
class Settings:
    """What one call counts.

    Attributes:
        left_out: names of models that this environment cannot build -> why.
        json: a file, "-" for the standard output, or None.
    """

    subjects: tuple[Subject, ...]
    left_out: dict[str, str]
    conventions: tuple[str, ...]
    text_tokens: int
    image_size: tuple[int, int]
    passes: int
    json: str | None


def read_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Parse and check; anything unexpected ends the program with exit code 2 and a message."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    names = _choice(parser, "--model", args.model, ARCHITECTURES)
    left_out = {} if args.model else _left_out(names)
    image_size = _image_size(parser, args.image_size)
    text_tokens = _integer(parser, "--text-tokens", args.text_tokens, 0, 10**6)
    retentions = _words(args.retention) if args.retention else None
    subjects = []
    for name in names:
        if name not in left_out:
            subject = _subject(parser, name, image_size, retentions)
            _check_positions(parser, subject, text_tokens)
            subjects.append(subject)
    _check_file(parser, args.json)
    return Settings(
        subjects=tuple(subjects),
        left_out=left_out,
        conventions=_choice(parser, "--convention", args.convention, CONVENTIONS),
        text_tokens=text_tokens,
        image_size=image_size,
        passes=_integer(parser, "--passes", args.passes, 1, 2),
        json=args.json,
    )


def _left_out(names: Sequence[str]) -> dict[str, str]:
    """Models of which this transformers has no modules -> why."""
    try:
        require_transformers()
    except HiPruneError:
        reason = (
            f"needs transformers >= {'.'.join(map(str, FIRST))}, here is "
            f"{version('transformers')}; bash setup_qwen.sh makes an environment with it"
        )
        return {name: reason for name in names if ARCHITECTURES[name].family == "qwen2_5_vl"}
    return {}


def _subject(
    parser: argparse.ArgumentParser,
    name: str,
    image_size: tuple[int, int],
    texts: Sequence[str] | None,
) -> Subject:
    architecture = ARCHITECTURES[name]
    missing = _left_out([name])
    if missing:
        parser.error(f"--model={name!r}: {missing[name]}")
    try:
        picture = picture_of(architecture, image_size)
    except ValueError as error:
        parser.error(f"--image-size={'x'.join(map(str, image_size))!r}: {error}")
    subject = Subject(architecture, picture, architecture.retentions)
    if texts is None:
        return subject
    least, most = picture.views, picture.tokens
    expected = f"an integer from {least} to {most} (tokens) or a number in (0, 1] (share of them)"
    if least > 1:
        expected += f" that leaves each of the {least} views a token"
    retentions = []
    for text in texts:
        value = _number(text)
        whole = isinstance(value, int) and least <= value <= most
        share = isinstance(value, float) and 0 < value <= 1 and subject.kept(value) >= 1
        if not whole and not share:
            parser.error(f"--retention={text!r}: of {name} expected {expected}")
        retentions.append(value)
    return Subject(architecture, picture, tuple(retentions))


def _check_positions(parser: argparse.ArgumentParser, subject: Subject, text_tokens: int) -> None:
    positions, tokens = subject.architecture.text.positions, subject.picture.tokens
    if text_tokens + tokens > positions:
        parser.error(
            f"--text-tokens={text_tokens}: of {subject.architecture.name} expected an integer "
            f"from 0 to {positions - tokens} ({positions} positions less {tokens} visual tokens)"
        )


def _check_file(parser: argparse.ArgumentParser, name: str | None) -> None:
    if name in (None, "-"):
        return
    path = Path(name).absolute()
    if path.is_dir() or not path.parent.is_dir():
        parser.error(f"--json={name!r}: expected a file in a folder that exists, or -")


def _choice(
    parser: argparse.ArgumentParser, option: str, given: list[str] | None, known: dict
) -> tuple[str, ...]:
    names = _words(given) if given else tuple(known)
    for name in names:
        if name not in known:
            parser.error(f"{option}={name!r}: expected one or more of {', '.join(known)}")
    return names


def _words(given: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for text in given for word in text.split(",")))


def _number(text: str) -> int | float | None:
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    return float(text) if re.fullmatch(r"[0-9]*\.[0-9]+|[0-9]+\.", text) else None


def _integer(parser: argparse.ArgumentParser, option: str, text: str, least: int, most: int) -> int:
    value = _number(text)
    if not isinstance(value, int) or not least <= value <= most:
        parser.error(f"{option}={text!r}: expected an integer from {least} to {most}")
    return value


def _image_size(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", text)
    sides = tuple(map(int, match.groups())) if match else (0, 0)
    if not all(1 <= side <= LONGEST_SIDE for side in sides):
        parser.error(
            f"--image-size={text!r}: expected WxH, width and height in pixels, each an integer "
            f"from 1 to {LONGEST_SIDE}"
        )
    return sides
