"""What lies where on the page, which part follows from which, and the server of it.

It loads nothing from elsewhere: system fonts, no analytics, and a header that forbids browsers to.
"""

from __future__ import annotations

import os
from html import escape
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from hiprune import HiPruneError
from scripts.demo import drawn
from scripts.demo.asking import MOST_WORDS
from scripts.demo.loaded import Loaded
from scripts.demo.page import Page, no_answers

HOST = "127.0.0.1"
MOST_BYTES = "50mb"  # of a file
ASKING = 16  # users whose question waits
# Nothing from anywhere else; Gradio's own scripts stand in the page and make functions of text.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; form-action 'self'"
)
CSS = """
.gradio-container { max-width: 1240px !important; }
#head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; }
#head p, .note { color: var(--body-text-color-subdued); margin: 2px 0 0; font-size: .9rem; }
#notice:not(:has(p)) { display: none; }
#notice p { color: #b00020; background: #fdecee; border: 1px solid #f3b8bf; border-radius: 8px;
  padding: 8px 12px; margin: 0; }
#notice p.wait { color: #7a4a00; background: #fff6e5; border-color: #f0d5a3; }
#scenes { padding: 0; }
.numbers { display: flex; gap: 8px; flex-wrap: wrap; }
.numbers div { flex: 1 1 84px; background: var(--background-fill-secondary); border-radius: 8px;
  padding: 6px 10px; border: 1px solid var(--border-color-primary); }
.numbers div.wide { flex: 2 1 180px; }
.numbers b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.numbers span { font-size: .78rem; color: var(--body-text-color-subdued); }
.answer { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 14px;
  min-height: 122px; height: 100%; box-sizing: border-box; }
.answer h3 { font-size: .8rem; font-weight: 600; margin: 0 0 4px;
  color: var(--body-text-color-subdued); }
.answer .text { font-size: 1.15rem; margin: 0 0 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.answer .cost { font-size: .82rem; margin: 0; color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums; }
.answer.empty p { color: var(--body-text-color-subdued); margin: 0; }
footer { display: none !important; }
"""

class Picture(gr.Image):
    """An image whose file is opened by us, so that a bad one is told in our words."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload is not None else None
    from collections.abc import Callable, Sequence
    from typing import TYPE_CHECKING, Any, Literal

    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def build(loaded: Loaded) -> gr.Blocks:
    """The page of a loaded model, its first example shown."""
    page = Page(loaded)
    first = page.scenes[0]
    seen = page.seen(str(first.path))
    start = loaded.settings(seen.tokens)
    shown = page.kept(seen, start, first.question)
    with gr.Blocks(title="HiPrune", analytics_enabled=False) as blocks:
        gr.HTML(_head(loaded), elem_id="head")
        notice = gr.HTML("", elem_id="notice")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                picture = Picture(
                    str(first.path), label="Picture", sources=["upload", "clipboard"], height=300,
                    type="filepath", elem_id="picture", buttons=[],
                )  # fmt: skip
                scenes = gr.Gallery(
                    [str(scene.path) for scene in page.scenes], columns=len(page.scenes), height=66,
                    allow_preview=False, show_label=False, interactive=False, elem_id="scenes",
                    object_fit="cover", buttons=[], container=False,
                )  # fmt: skip
                question = gr.Textbox(
                    first.question, label="Question", elem_id="question", lines=1, max_lines=4,
                    max_length=MOST_WORDS,
                )  # fmt: skip
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                budget = gr.Slider(
                    page.least(seen), seen.tokens, start.budget, step=1, elem_id="budget",
                    label="N', visual tokens to keep",
                )  # fmt: skip
                alpha = gr.Slider(
                    0, 1, start.alpha, step=0.05, elem_id="alpha",
                    label="alpha, share of anchors and buffers",
                )  # fmt: skip
                layer = gr.Slider(
                    1, loaded.layers, start.object_layer, step=1, elem_id="layer",
                    label="l, the layer that anchors are read from",
                )  # fmt: skip
                method = gr.Dropdown(
                    list(loaded.methods), value=start.method, label="Method", elem_id="method"
                )
            with gr.Column(scale=11, min_width=480):
                with gr.Row():
                    kept = gr.Image(
                        shown[0], label="Kept tokens", interactive=False, format="png",
                        elem_id="kept", buttons=["fullscreen"], scale=9, height=380, min_width=240,
                    )  # fmt: skip
                    maps = gr.Image(
                        drawn.attention(seen, start.object_layer),
                        label="Attention received in layer l and in the output layer",
                        interactive=False, format="png", elem_id="maps", buttons=["fullscreen"],
                        scale=14, height=380, min_width=300,
                    )  # fmt: skip
                summary = gr.HTML(shown[1], elem_id="summary")
                with gr.Row(equal_height=True):
                    with gr.Column(min_width=240):
                        unpruned = gr.HTML(no_answers()[0], elem_id="unpruned")
                    with gr.Column(min_width=240):
                        pruned = gr.HTML(no_answers()[1], elem_id="pruned")

        settings = [budget, alpha, layer, method]
        asked = [picture, question, *settings]
        every = [picture, budget, kept, maps, summary, unpruned, pruned, notice]
        quiet = {"show_progress": "hidden", "concurrency_limit": ASKING}
        # What comes last counts: a slider that is dragged does not draw all that it passes.
        last = {**quiet, "trigger_mode": "always_last"}

        def of_scene(event: gr.SelectData, *others: Any) -> list:
            scene = page.scenes[event.index]
            _, *shown = page.show(str(scene.path), scene.question, *others)
            return [str(scene.path), *shown, scene.question]

        def cleared() -> list:
            return [None, None, "", *no_answers(), ""]

        picture.upload(page.show, asked, every, api_name="show", **quiet)
        picture.clear(cleared, None, every[2:], api_visibility="private", **quiet)
        scenes.select(of_scene, settings, [*every, question], api_visibility="private", **quiet)
        drawn_again = [kept, summary, notice]
        for slider in (budget, alpha):
            slider.input(page.redraw, asked, drawn_again, api_visibility="private", **last)
        layer.input(page.relook, asked, [*drawn_again, maps], api_name="redraw", **last)
        method.input(
            page.method, asked, [*drawn_again, alpha, layer], api_visibility="private", **last
        )
        gr.on(
            [button.click, question.submit],
            page.ask, asked, [unpruned, pruned, *drawn_again],
            api_name="ask", show_progress="minimal", concurrency_limit=ASKING,
        )  # fmt: skip
    return blocks

def launch(blocks: gr.Blocks, port: int) -> str:
    """Serve the page on this machine alone, and come back; its address.

    Raises:
        HiPruneError: the port is taken.
    """
    for name in ("NO_PROXY", "no_proxy"):  # Gradio calls itself once
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    font = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = blocks.launch(
            server_name=HOST, server_port=port, share=False, quiet=True, inbrowser=False,
            prevent_thread_lock=True, footer_links=[], run_history=False, enable_monitoring=False,
            ssr_mode=False, pwa=False, mcp_server=False, max_file_size=MOST_BYTES, theme=theme,
            css=CSS, app_kwargs={"middleware": [Middleware(_Policy)]},
        )  # fmt: skip
    except OSError as error:
        raise HiPruneError(f"PORT={port}: taken; expected a free port of {HOST}") from error
    return address

class _Policy:
    """POLICY on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"content-security-policy", POLICY.encode()))
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)

def _head(loaded: Loaded) -> str:
    size, start = loaded.layers, loaded.start
    about = (
        f"{escape(loaded.checkpoint.name)} ({loaded.family}, {type(loaded.model).__name__}), "
        f"{size} layers in its vision tower, on {loaded.model.device}. To begin with l = "
        f"{start.object_layer}, alpha = {start.alpha}."
    )
    return f"<h1>HiPrune: which visual tokens stay</h1><p>{about}</p>"
