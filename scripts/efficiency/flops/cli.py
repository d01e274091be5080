"""The command line of flops.py: every argument is checked before anything is counted."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hiprune.models.transformers_version import FIRST, require_transformers

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from scripts.efficiency.architectures import ARCHITECTURES, Architecture
from scripts.efficiency.flops.conventions import CONVENTIONS, PASSES, TEXT_TOKENS
from scripts.efficiency.flops.count import Picture
from scripts.efficiency.flops.models import IMAGE_SIZE, picture_of
from scripts.numbers import image_size, integer, number

LONGEST_SIDE = 100_000


def make_parser() -> argparse.ArgumentParser:
    """Options as text; :func:`read_settings` checks what they say."""
    parser = argparse.ArgumentParser(
        prog="flops.py",
        description="FLOPs of a prompt with one image up to the first answer token: vision "
        "tower, scoring,\nprojector, language model and total, unpruned and at every budget. "
        "Counted with fvcore\non models without weights: no GPU, no hub.",
        epilog="\n\n".join(
            textwrap.fill(f"convention {c.name}, in T {c.unit}: {c.meaning}", 80)
            for c in CONVENTIONS.values()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed = {"action": "append", "metavar": "NAME[,NAME...]"}
    parser.add_argument(
        "--model",
        **listed,
        help=f"which models, repeatable (default all): {', '.join(ARCHITECTURES)}",
    )
    parser.add_argument(
        "--convention", **listed, help=f"which tables (default all): {', '.join(CONVENTIONS)}"
    )
    parser.add_argument(
        "--retention",
        action="append",
        metavar="N[,N...]",
        help="budgets beside the unpruned model: tokens per image (192) or a share in (0, 1] of "
        "them (0.334). Default: the paper's",
    )
    parser.add_argument(
        "--text-tokens",
        metavar="N",
        default=str(TEXT_TOKENS),
        help="of the prompt, without the image's (default %(default)s: with these the paper's "
        "table comes out)",
    )
    parser.add_argument(
        "--image-size",
        metavar="WxH",
        default="x".join(map(str, IMAGE_SIZE)),
        help="of Qwen's image, in pixels; rounded to multiples of 28 (Qwen3-VL: 32) as its "
        "processor does (default %(default)s: 1024 tokens, Qwen3-VL 784). LLaVA's images are those "
        "of the paper's tables, InternVL's and LLaVA-OneVision's are of 896x896",
    )
    parser.add_argument(
        "--passes",
        metavar="N",
        default=str(PASSES),
        help="of the scoring over QK^T, in the convention 'executed': 2 as the kernel on a GPU, "
        "1 as on a CPU (default %(default)s)",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write all figures, in full and with versions and command, to a file; without a name "
        "or as - to the standard output, in place of the tables",
    )
    return parser


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
    size = _checked(parser, image_size, args.image_size, 1, LONGEST_SIDE, name="--image-size")
    text_tokens = _checked(parser, integer, args.text_tokens, 0, 10**6, name="--text-tokens")
    retentions = _words(args.retention) if args.retention else None
    subjects = []
    for name in names:
        if name not in left_out:
            subject = _subject(parser, name, size, retentions)
            _check_positions(parser, subject, text_tokens)
            subjects.append(subject)
    _check_file(parser, args.json)
    return Settings(
        subjects=tuple(subjects),
        left_out=left_out,
        conventions=_choice(parser, "--convention", args.convention, CONVENTIONS),
        text_tokens=text_tokens,
        image_size=size,
        passes=_checked(parser, integer, args.passes, 1, 2, name="--passes"),
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
        return {name: reason for name in names if ARCHITECTURES[name].needs_own}
    return {}


def _subject(
    parser: argparse.ArgumentParser,
    name: str,
    size: tuple[int, int],
    texts: Sequence[str] | None,
) -> Subject:
    architecture = ARCHITECTURES[name]
    missing = _left_out([name])
    if missing:
        parser.error(f"--model={name!r}: {missing[name]}")
    try:
        picture = picture_of(architecture, size)
    except ValueError as error:
        parser.error(f"--image-size={'x'.join(map(str, size))!r}: {error}")
    subject = Subject(architecture, picture, architecture.retentions)
    if texts is None:
        return subject
    least, most = picture.views, picture.tokens
    expected = f"an integer from {least} to {most} (tokens) or a number in (0, 1] (share of them)"
    if least > 1:
        expected += f" that leaves each of the {least} views a token"
    retentions = []
    for text in texts:
        value = number(text)
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


def _checked(parser: argparse.ArgumentParser, read: Callable, *arguments: Any, name: str) -> Any:
    try:
        return read(*arguments, name=name)
    except HiPruneError as error:
        parser.error(str(error))
