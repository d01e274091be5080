"""A pytest plugin: HiPrune with everything kept on every model that a test makes, and what came.

HIPRUNE_UPSTREAM=full applies it, "off" does not; HIPRUNE_UPSTREAM_LOG is a file for one JSON line
a test.
"""

from __future__ import annotations

import functools
import json
import os
import threading

import pytest

MODE, LOG = os.environ.get("HIPRUNE_UPSTREAM", "off"), os.environ.get("HIPRUNE_UPSTREAM_LOG")
_told: list[str] = []  # messages of HiPruneErrors in the test that runs
_loading = threading.local()


def pytest_configure(config) -> None:
    if MODE == "full":
        _listen()
        import hiprune.models  # noqa: F401 - fills the registry
        import transformers
        from hiprune.models.registry import ADAPTERS

        for name in [name for package, name in ADAPTERS if package == "transformers"]:
            _apply_to_all(getattr(transformers, name))


def _listen() -> None:
    from hiprune import HiPruneError

    original = HiPruneError.__init__

    def note(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        _told.append(str(self))

    HiPruneError.__init__ = note


def _apply_to_all(cls) -> None:
    """As a user does, to the finished model: within from_pretrained, at its end."""
    import hiprune

    make, load = cls.__init__, cls.from_pretrained.__func__

    def apply(model) -> None:
        # Models of the tests have few layers and their own sizes.
        hiprune.apply(model, hiprune.HiPruneConfig(retention=1.0, object_layer=1))

    @functools.wraps(make)
    def made(self, *args, **kwargs) -> None:
        make(self, *args, **kwargs)
        if type(self) is cls and not getattr(_loading, "depth", 0):
            apply(self)

    @functools.wraps(load)
    def loaded(owner, *args, **kwargs):
        _loading.depth = getattr(_loading, "depth", 0) + 1
        try:
            found = load(owner, *args, **kwargs)
        finally:
            _loading.depth -= 1
        model = found[0] if isinstance(found, tuple) else found
        if not _loading.depth and type(model) is cls:
            apply(model)
        return found

    cls.__init__, cls.from_pretrained = made, classmethod(loaded)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        error = str(call.excinfo.value).strip().splitlines() if call.excinfo else []
        kind = f"{call.excinfo.type.__name__}: " if call.excinfo else ""
        line = {
            "test": item.nodeid.partition("::")[2],
            "outcome": report.outcome,
            "error": (kind + (error[0] if error else ""))[:300],
            "told": sorted(set(_told)),
        }
        if LOG and report.when != "teardown":
            with open(LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    _told.clear()
    return report
