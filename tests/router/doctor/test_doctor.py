"""The doctor's findings, and the command against an engine without anything switched on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.cli.main import main
from router.doctor.engine import Engine, Usage
from router.doctor.finding import Finding, note, wrong
from router.doctor.findings import between, of_engine
from router.doctor.run import report
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.engines import NAMES, EngineKind
from router.fleet.engines.sglang import SGLANG
from router.fleet.engines.trtllm import TRTLLM

GOOD = EngineMetrics(running=0.0, kv_tokens=1000, block_tokens=16, prefix_caching=True)


def engine(url: str = "http://a", **fields: object) -> Engine:
    made = Engine(url, models={"m": "/m"}, cache={"block_size": "16"}, metrics=GOOD)
    made.first = Usage(1000, 0)
    made.again = Usage(1000, 992)
    made.salted = Usage(1000, 0)
    return msgspec.structs.replace(made, **fields)


def only(found: list[Finding]) -> Finding:
    (one,) = found
    return one


def test_a_good_engine_gives_nothing_to_tell() -> None:
    assert of_engine(engine()) == []
    assert between([engine(), engine("http://b")]) == []


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"metrics": None}, "--disable-log-stats"),
        (
            {"metrics": msgspec.structs.replace(GOOD, prefix_caching=False)},
            "--enable-prefix-caching",
        ),
        ({"again": Usage(1000, 0)}, "--enable-prefix-caching"),
        (
            {"first": Usage(9), "again": Usage(9), "salted": Usage(9)},
            "--enable-prompt-tokens-details",
        ),
        ({"salted": Usage(1000, 992)}, "upgrade vLLM"),
        ({"clock": -90.0}, "NTP"),
        ({"trouble": "/health answers 503", "trouble_fix": "look at the log"}, "look at the log"),
    ],
)
def test_each_fault_of_an_engine_names_what_mends_it(fields: dict[str, object], flag: str) -> None:
    found = only(of_engine(engine(**fields)))
    assert found.wrong
    assert flag in found.fix


@pytest.mark.parametrize(
    ("kind", "fields", "flag"),
    [
        (SGLANG, {"metrics": None}, "--enable-metrics"),
        (SGLANG, {"first": Usage(9), "again": Usage(9)}, "--enable-cache-report"),
        (SGLANG, {"again": Usage(1000, 0)}, "--disable-radix-cache"),
        (SGLANG, {"salted": Usage(1000, 992)}, "upgrade SGLang"),
        (TRTLLM, {"metrics": None}, "return_perf_metrics: true"),
        (TRTLLM, {"again": Usage(1000, 0)}, "enable_block_reuse: true"),
        (TRTLLM, {"salted": Usage(1000, 992)}, "upgrade TensorRT-LLM"),
    ],
)
def test_a_fault_is_mended_by_a_flag_of_that_engine(
    kind: EngineKind, fields: dict[str, object], flag: str
) -> None:
    found = of_engine(engine(kind=kind, **fields))
    (wrong_one,) = (one for one in found if one.wrong)
    assert flag in wrong_one.fix
    assert "vLLM" not in wrong_one.what + wrong_one.fix
    assert [one.what for one in found if not one.wrong] == [
        f"it is {kind.title}: what its cache holds is estimated from what it was sent, also in "
        "exact mode"
    ]


def test_what_is_worth_knowing_is_not_wrong() -> None:
    unknown = msgspec.structs.replace(GOOD, kv_tokens=None)
    assert not only(of_engine(engine(metrics=unknown))).wrong
    assert not only(of_engine(engine(refused="400 no"))).wrong


def test_replicas_that_differ_are_told_together() -> None:
    other = engine("http://b", models={"m": "/other"}, cache={"block_size": "32"})
    found = between([engine(), other])
    assert ["--served-model-name" in one.fix or "--block-size" in one.fix for one in found] == [
        True,
        True,
    ]
    assert "16, 32" in found[1].what
    assert between([engine(), msgspec.structs.replace(other, trouble="down")]) == []


def test_engines_that_name_a_models_place_in_their_own_way_do_not_differ() -> None:
    sglang = engine("http://b", models={"m": "m"}, kind=SGLANG, cache={})
    trtllm = engine("http://c", models={"m": ""}, kind=TRTLLM, cache={})
    assert between([engine(), sglang, trtllm]) == []
    other = engine("http://d", models={"m": "other"}, kind=SGLANG, cache={})
    assert "--served-model-name" in only(between([engine(), sglang, other])).fix


def test_the_report_puts_what_is_wrong_first() -> None:
    found = [note("http://b", "odd", "maybe"), wrong("http://a", "bad", "--fix")]
    lines = report([engine(), engine("http://b")], found).splitlines()
    assert lines[:2] == ["WRONG  http://a: bad", "       mend: --fix"]
    assert lines[-2:] == ["fine   http://b: serves m", "1 thing wrong with 2 replicas"]
    assert report([engine()], []).splitlines()[-1] == "nothing wrong with 1 replica"


@pytest.fixture
def bare() -> Iterator[str]:
    """An engine that serves, with nothing switched on, in a thread of its own."""

    async def health(_: Request) -> Response:
        return Response(headers={"date": "Mon, 01 Jan 2024 00:00:00 GMT"})

    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "root": "/none"}]})

    async def complete(request: Request) -> Response:
        prompt = (await request.json())["prompt"]
        return JSONResponse({"usage": {"prompt_tokens": len(prompt.split())}})

    async def sources(_: Request) -> Response:
        return JSONResponse({})

    async def another(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "owned_by": "library"}]})

    routes = [
        Route("/another/health", health),
        Route("/another/v1/models", another),
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/kv_event_sources", sources),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes), port=0, log_level="error", lifespan="off", date_header=False
    )
    server = uvicorn.Server(config)
    started = threading.Event()

    async def serve() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0.005)
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_command_finds_what_is_off_and_exits_with_1(
    bare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--replica", bare]) == 1
    told = capsys.readouterr().out
    for fix in (
        "--disable-log-stats",
        "--enable-prompt-tokens-details",
        "--kv-events-config",
        "NTP",
        "set exact_tokenizer",
    ):
        assert fix in told, told


def test_events_are_wrong_only_where_exact_mode_is_on(
    bare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"{bare}: KV events are off"
    main(["doctor", "--replica", bare])
    assert f"note   {said}" in capsys.readouterr().out
    main(["doctor", "--replica", bare, "--exact", "true"])
    assert f"WRONG  {said}" in capsys.readouterr().out


def test_a_server_that_is_no_vllm_is_called_that(
    bare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, why in (
        (bare + "/another", "its models are none of theirs, nor are its metrics"),
        (bare + "/nothing", "/health answers 404"),
    ):
        assert main(["doctor", "--replica", url]) == 1
        assert f"WRONG  {url}: this is no server of {NAMES}: {why}" in capsys.readouterr().out


def test_a_replica_that_is_not_there_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--replica", "http://127.0.0.1:1"]) == 1
    assert "/health cannot be reached" in capsys.readouterr().out
