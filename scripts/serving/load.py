"""What servers are asked: pictures and questions of our own, put by vLLM's serving benchmark."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from functools import cached_property
from pathlib import Path

import numpy as np

from hiprune import HiPruneError
from scripts.serving.server import MODEL, Server
from scripts.tiny.questions import ask
from scripts.tiny.scenes import make_scene

SIDE = 336


class Load:
    """Requests of one picture each, no picture twice: all servers get the same, each once.

    Args:
        folder: of the files that vLLM's benchmark reads, and of its output.
        checkpoint: whose tokenizer it wants.
        size: width and height of a picture, in pixels.
        new_tokens: exactly so many are decoded, whatever the model says.
        seed: of scenes and questions.
    """

    def __init__(
        self, folder: Path, checkpoint: str, size: tuple[int, int], new_tokens: int, seed: int
    ) -> None:
        self.folder, self.checkpoint, self.size = folder, checkpoint, size
        self.new_tokens, self.seed = new_tokens, seed

    def requests(self, name: str, first: int, count: int) -> Path:
        """A file of the scenes from ``first`` on; written once."""
        path = self.folder / f"{name}.jsonl"
        if not path.is_file():
            lines = [json.dumps(self._request(first + number)) for number in range(count)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _request(self, index: int) -> dict:
        from PIL import Image

        scene = make_scene(self.seed, index, SIDE)
        asked = ask(scene, np.random.default_rng([self.seed, index]))
        picture = Image.fromarray(scene.image).resize(self.size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        text = asked[index % len(asked)].text
        picture_part = {"type": "image_url", "image_url": {"url": url}}
        return {"content": [picture_part, {"type": "text", "text": text}]}

    def put(self, server: Server, file: Path, count: int, concurrency: int) -> dict[str, float]:
        """vLLM's benchmark once: requests a second; medians of the times, in seconds.

        Raises:
            HiPruneError: a request failed.
        """
        from vllm.benchmarks import serve

        arguments = [
            *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
            *("--base-url", server.url, "--model", MODEL, "--served-model-name", MODEL),
            *("--dataset-name", "custom_image", "--dataset-path", str(file), "--disable-shuffle"),
            *("--num-prompts", str(count), "--max-concurrency", str(concurrency)),
            *("--output-len", str(self.new_tokens), "--ignore-eos", "--temperature", "0"),
            *("--tokenizer", self.checkpoint, "--disable-tqdm", "--save-detailed"),
        ]
        with open(self.folder / "vllm-bench.log", "a", encoding="utf-8") as log:
            with contextlib.redirect_stdout(log):
                found = serve.main(self.parser.parse_args(arguments))
        if found["failed"]:
            error = next(error for error in found["errors"] if error)
            raise HiPruneError(
                f"{server.label}: {found['failed']} of {count} requests failed: "
                f"{error.strip().splitlines()[-1]}"
            )
        return {
            "requests_per_second": found["request_throughput"],
            "ttft": found["median_ttft_ms"] / 1000,
            "tpot": found["median_tpot_ms"] / 1000,
        }

    @cached_property
    def parser(self):
        """Of vLLM's benchmark, whose import takes its time."""
        from vllm.benchmarks import serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = FlexibleArgumentParser()
        serve.add_cli_args(parser)
        return parser
