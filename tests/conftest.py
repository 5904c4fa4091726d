"""Fixtures shared by all tests: reference data, random checkpoints, and live servers."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trustme
from httpx2._config import DEFAULT_TIMEOUT_CONFIG  # no public name sets the default timeout
from hypothesis import HealthCheck, settings

from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server

if TYPE_CHECKING:
    from model.engine.engine import Engine
    from tests.support.peers.collector import Collector

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the hub is a broken test


def _interpret_triton() -> None:
    """Run GPU kernels on CPU tensors in this process, but not in servers that tests start."""
    if importlib.util.find_spec("triton") is None:
        return
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's own kernels read it when they are imported
    from triton import knobs

    knobs.propagate_env = False
    knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]


_interpret_triton()

# An example may take its time, and making it too: what is slow here is the machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# A client gives up after five seconds unless told otherwise, which a busy machine may take at times.
vars(DEFAULT_TIMEOUT_CONFIG).update(vars(httpx2.Timeout(60)))

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Directory of the golden values of the original implementation."""
    return GOLDEN


@pytest.fixture(scope="session")
def official() -> Path:
    """Directory of the official checkpoint's data files (no weights)."""
    return GOLDEN / "official"


@pytest.fixture(scope="session")
def golden_cases(golden: Path) -> list[dict[str, Any]]:
    """The cases of ``prompts.json``."""
    cases: list[dict[str, Any]] = json.loads((golden / "prompts.json").read_text("utf-8"))
    return cases


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint; rope regimes change at 1024 tokens."""
    from model.demo.random_checkpoint import PRESETS, write_checkpoint

    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(directory, PRESETS["tiny"], seed=1, name="phi3v-tiny", num_crops=4)
    return directory


@pytest.fixture(scope="session")
def make_engine(tiny: Path) -> Callable[..., Engine]:
    """Engines on the tiny checkpoint in float32, of the given sizes; caches on unless they are set."""
    from model.engine.config import LoadOptions
    from model.engine.loading.load import load_engine
    from tests.support.engines.engine_runs import resized

    loaded = load_engine(tiny, LoadOptions(model="", dtype="float32", max_model_len=2048))

    return partial(resized, loaded)


@pytest.fixture(scope="session")
def server(tiny: Path) -> Iterator[LiveServer]:
    """A live server on the tiny checkpoint, in float32, with an API key."""
    live = start_server("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY)
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture(scope="session")
def secure_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[LiveServer, Path]]:
    """A live server over TLS with an API key, and the certificate of the authority to trust.

    It bears the real model's name, it shows images in one crop, and its window is short: clients that
    name no length, or a great one, get their answers soon.
    """
    from model.demo.random_checkpoint import PRESETS, write_checkpoint

    name = "Phi-3-vision-128k-Instruct"
    checkpoint = tmp_path_factory.mktemp("checkpoints") / name
    write_checkpoint(checkpoint, PRESETS["tiny"], seed=1, name=name, num_crops=1)
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "certificate.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    live = start_server(
        *("--model", str(checkpoint), "--dtype", "float32", "--api-key", API_KEY),
        *("--max-model-len", "400", "--max-output-tokens", "64"),
        *("--ssl-certfile", str(folder / "certificate.pem")),
        *("--ssl-keyfile", str(folder / "key.pem")),
    )
    yield live, folder / "authority.pem"
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """An OpenTelemetry collector of the module's own."""
    from tests.support.peers.collector import collecting

    with collecting() as found:
        yield found
