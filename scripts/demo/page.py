"""What the page's parts do: a user's picture and settings -> what stands on the user's page.

It shows what :mod:`scripts.demo.asking` computes and decides nothing of it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from hiprune import HiPruneError, TokenSelection
from hiprune.figures import counts
from hiprune.methods import METHODS
from scripts.demo import asking, drawn
from scripts.demo.asking import Answer, Seen
from scripts.demo.loaded import Loaded, Settings

logger = logging.getLogger(__name__)

REMEMBERED = 32  # pictures
EMPTY = '<div class="answer empty"><h3>{}</h3><p>Ask to see it.</p></div>'
NO_KINDS = "This method knows no anchors and buffers: all that it keeps is drawn as registers."


class Page:
    """What the page's parts do. Each user's state is what stands on the user's page."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.scenes = drawn.examples(loaded.family)
        self._remembered = functools.lru_cache(maxsize=REMEMBERED)(
            lambda path, _: asking.see(loaded, path)
        )

    def seen(self, path: str | None) -> Seen:
        if not path:
            raise HiPruneError("no picture: expected one, uploaded or out of the examples")
        changed = os.stat(path).st_mtime_ns if os.path.isfile(path) else 0
        return self._remembered(str(path), changed)

    # A file, the settings -> all that is shown of them. The budget's range is the picture's.

    def show(self, path: str | None, question: str, budget: int | None, *others: Any) -> list:
        """A new picture: both pictures of it, numbers, the range of N', no answers, no notice."""
        try:
            seen = self.seen(path)
            budget = self._budget(seen, budget)
            shown = self.kept(seen, self._settings(budget, *others), question)
            maps = drawn.attention(seen, int(others[1]))
        except Exception as error:
            return [None, gr.skip(), None, None, "", *no_answers(), _notice(error)]
        limits = gr.update(minimum=self.least(seen), maximum=seen.tokens, value=budget)
        return [gr.skip(), limits, shown[0], maps, shown[1], *no_answers(), ""]

    def redraw(self, path: str, question: str, *settings: Any) -> list:
        """Moved settings: what is kept, without asking. (kept, numbers, notice)"""
        try:
            return [*self.kept(self.seen(path), self._settings(*settings), question), ""]
        except Exception as error:
            return [gr.skip(), gr.skip(), _notice(error)]

    def relook(self, path: str, question: str, *settings: Any) -> list:
        """Another l: its map too. (kept, numbers, notice, maps)"""
        found = self.redraw(path, question, *settings)
        if found[-1] or not path:
            return [*found, gr.skip()]
        return [*found, drawn.attention(self.seen(path), int(settings[2]))]

    def method(self, path: str, question: str, *settings: Any) -> list:
        """Another method: settings that it does not look at rest. (..., alpha, l)"""
        method = METHODS[settings[3]]
        alpha = gr.update(interactive="alpha" in method.shared)
        layer = gr.update(interactive="object_scores" in method.needs)
        return [*self.redraw(path, question, *settings), alpha, layer]

    def ask(self, path: str, question: str, *settings: Any) -> Iterator[list]:
        """Both answers. (unpruned, pruned, kept, numbers, notice)"""
        nothing = [gr.skip()] * 4
        if self.loaded.busy:
            yield [*nothing, _notice("Another question is being answered; yours is next.", "wait")]
        try:
            seen, chosen = self.seen(path), self._settings(*settings)
            asked = asking.ask(self.loaded, seen, question, chosen)
            picture = drawn.kept(seen, asked.selection)
        except Exception as error:
            yield [*nothing, _notice(error)]
            return
        factor = asked.pruned.seconds / asked.unpruned.seconds
        yield [
            _answer("Unpruned", asked.unpruned),
            _answer(_pruned_title(chosen), asked.pruned, f" ({factor:.2f} of unpruned)"),
            picture,
            numbers(asked.selection, chosen.method),
            "",
        ]

    def least(self, seen: Seen) -> int:
        """The smallest N' of a picture: a token a view, or what the model takes."""
        return min(max(self.loaded.least, seen.views), seen.tokens - 1)

    def _budget(self, seen: Seen, budget: int | None) -> int:
        if budget is None or not isinstance(self.loaded.start.retention, int):
            budget = self.loaded.settings(seen.tokens).budget  # a share of each picture's tokens
        return max(self.least(seen), min(int(budget), seen.tokens))

    def _settings(self, budget: float, alpha: float, layer: float, method: str) -> Settings:
        return Settings(int(budget), float(alpha), int(layer), method)

    def kept(self, seen: Seen, settings: Settings, question: str) -> tuple[Any, str]:
        selection = asking.choose(self.loaded, seen, settings, question)
        return drawn.kept(seen, selection), numbers(selection, settings.method)


def numbers(selection: TokenSelection, method: str) -> str:
    """N' of N, and how many of each kind."""
    found, total = counts(selection), selection.keep.numel()
    kept = asking.tokens_kept(selection)
    boxes = [("wide", f"{total} → {kept}", f"visual tokens, {100 * kept / total:.1f} % kept")]
    if method == "hiprune":
        for kind in ("anchor", "buffer", "register"):
            boxes.append(("", found[kind], kind if found[kind] == 1 else f"{kind}s"))
    boxes.append(("", found["dropped"], "dropped"))
    cells = (
        f'<div class="{c}"><b>{value}</b><span>{name}</span></div>' for c, value, name in boxes
    )
    note = "" if method == "hiprune" else f'<p class="note">{NO_KINDS}</p>'
    return f'<div class="numbers">{"".join(cells)}</div>{note}'


def no_answers() -> list[str]:
    return [EMPTY.format("Unpruned"), EMPTY.format("Pruned")]


def _answer(title: str, answer: Answer, more: str = "") -> str:
    seconds = answer.seconds
    first = f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
    times = f", median of {answer.times}" if answer.times > 1 else ""
    return (
        f'<div class="answer"><h3>{escape(title)}</h3><p class="text">{escape(answer.text)}</p>'
        f'<p class="cost">{answer.visual} visual tokens in a prompt of {answer.prompt}<br>'
        f"first token {first}{more}{times}</p></div>"
    )


def _pruned_title(settings: Settings) -> str:
    method, found = METHODS[settings.method], f"Pruned: {settings.method}, N' = {settings.budget}"
    if "alpha" in method.shared:
        found += f", alpha = {settings.alpha:g}"
    if "object_scores" in method.needs:
        found += f", l = {settings.object_layer}"
    return found


def _notice(what: Exception | str, kind: str = "bad") -> str:
    """A line; what is not an error of ours is told to whoever runs the page, with its place."""
    if isinstance(what, Exception) and not isinstance(what, HiPruneError):
        logger.error("the page", exc_info=what)
        what = f"{type(what).__name__}: {what}"
    line = " ".join(str(what).split())
    line = line if len(line) <= 400 else line[:399] + "…"
    return f'<p class="{kind}" role="alert">{escape(line)}</p>'
