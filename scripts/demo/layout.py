"""What lies where on the page, which part follows from which, and the server of it.

It loads nothing from elsewhere: system fonts, no analytics, and a header that forbids browsers to.
"""

from __future__ import annotations

import os
from abc import ABCMeta
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
:root { --quiet: #55606e; } .dark { --quiet: #a9b4c2; }
.gradio-container { max-width: 1240px !important; }
#head, #summary, #unpruned, #pruned, #notice { padding: 0; }
#head .html-container, #summary .html-container, #unpruned .html-container,
#pruned .html-container, #notice .html-container { padding: 0; height: 100%; }
#unpruned, #pruned, #unpruned .prose, #pruned .prose { height: 100%; }
#head h1 { font-size: 1.45rem; font-weight: 650; margin: 0; }
#head p, p.note { color: var(--quiet); margin: 2px 0 0; font-size: .9rem; }
#notice:not(:has(p)) { display: none; }
#notice p { color: #b00020; background: #fdecee; border: 1px solid #f3b8bf; border-radius: 8px;
  padding: 8px 12px; margin: 0; }
#notice p.wait { color: #7a4a00; background: #fff6e5; border-color: #f0d5a3; }
#picture img, #kept img, #maps img { width: 100%; height: 100%; object-fit: contain; }
#kept img, #maps img { padding-top: 30px; box-sizing: border-box; } /* below their labels */
#scenes { padding: 0; min-height: 0; overflow: hidden; }
#scenes .grid-wrap { overflow: hidden; padding: 0; }
#scenes .grid-container { grid-template-columns: repeat(6, 1fr); gap: 6px; padding: 0; }
#scenes .thumbnail-item { aspect-ratio: 1; height: auto; }
.numbers { display: flex; gap: 8px; flex-wrap: wrap; }
.numbers div { flex: 1 1 84px; background: var(--background-fill-secondary); border-radius: 8px;
  padding: 6px 12px; border: 1px solid var(--border-color-primary); }
.numbers div.wide { flex: 2 1 180px; }
.numbers b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.numbers span { font-size: .8rem; color: var(--quiet); }
.answer { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 14px;
  min-height: 128px; height: 100%; box-sizing: border-box; }
.answer h3 { font-size: .82rem; font-weight: 600; margin: 0 0 4px; color: var(--quiet); }
.answer .text { font-size: 1.2rem; margin: 0 0 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.answer .cost { font-size: .84rem; margin: 0; color: var(--quiet);
  font-variant-numeric: tabular-nums; }
.answer.empty p { color: var(--quiet); margin: 0; }
footer { display: none !important; }
"""


def _path(self: Any, payload: Any) -> str | None:
    return payload.path if payload is not None else None


# An image whose file is opened by us, so that a bad one is told in our words. Not by a class
# statement: Gradio's metaclass would write a stub beside this file.
Picture = ABCMeta.__new__(
    type(gr.Image),
    "Picture",
    (gr.Image,),
    {"preprocess": _path, "is_template": True, "__module__": __name__},
)


def build(loaded: Loaded) -> gr.Blocks:
    """The page of a loaded model, its first example shown."""
    page = Page(loaded)
    first = page.scenes[0]
    seen = page.seen(str(first.path))
    start = loaded.settings(seen.tokens)
    shown = page.kept(seen, start, first.question)
    # The kept tokens are a panel a grid, the maps two.
    scales = (9, 14) if len(seen.made.grids) == 1 else (14, 10)
    with gr.Blocks(title="HiPrune", analytics_enabled=False) as blocks:
        gr.HTML(_head(loaded), elem_id="head")
        notice = gr.HTML("", elem_id="notice")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                picture = Picture(
                    str(first.path), label="Picture", sources=["upload", "clipboard"], height=372,
                    type="filepath", elem_id="picture", buttons=[],
                )  # fmt: skip
                scenes = gr.Gallery(
                    [str(scene.path) for scene in page.scenes], columns=len(page.scenes),
                    height=62, allow_preview=False, show_label=False, interactive=False,
                    elem_id="scenes", object_fit="cover", buttons=[], container=False,
                    fit_columns=False,
                )  # fmt: skip
                question = gr.Textbox(
                    first.question, label="Question", elem_id="question", lines=2, max_lines=4,
                    max_length=MOST_WORDS,
                )  # fmt: skip
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=12, min_width=480):
                with gr.Row():
                    kept = gr.Image(
                        shown[0], label="Kept tokens", interactive=False, format="png",
                        elem_id="kept", buttons=["fullscreen"], scale=scales[0], height=372,
                        min_width=240,
                    )  # fmt: skip
                    maps = gr.Image(
                        drawn.attention(seen, start.object_layer),
                        label="Attention received: layer l, output layer", interactive=False,
                        format="png", elem_id="maps", buttons=["fullscreen"], scale=scales[1],
                        height=372, min_width=300,
                    )  # fmt: skip
                with gr.Row():
                    budget = gr.Slider(
                        page.least(seen), seen.tokens, start.budget, step=1, label="N' tokens",
                        elem_id="budget", buttons=[], min_width=150,
                    )  # fmt: skip
                    alpha = gr.Slider(
                        0, 1, start.alpha, step=0.05, label="alpha", elem_id="alpha", buttons=[],
                        min_width=150,
                    )  # fmt: skip
                    layer = gr.Slider(
                        1, loaded.layers, start.object_layer, step=1, label="Layer l",
                        elem_id="layer", buttons=[], min_width=150,
                    )  # fmt: skip
                    method = gr.Dropdown(
                        list(loaded.methods), value=start.method, label="Method",
                        elem_id="method", min_width=150,
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
