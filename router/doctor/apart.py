"""Whether prompts can be prefilled on one engine and decoded on another, and whether they are.

An engine without a connector takes no notice of the transfer fields and computes the whole prompt,
and a router that never splits a prompt answers every request: neither shows without being looked
for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

import httpx
import msgspec

from router.config import Settings
from router.config.address import parse_address
from router.disaggregation import bodies
from router.disaggregation.connector import Connector, NoHandOverError
from router.disaggregation.connectors import connector_of
from router.disaggregation.disaggregation import Leg
from router.doctor.engine import PROBE_WORDS, Engine
from router.doctor.finding import Finding, note, wrong
from router.doctor.findings import BETWEEN

ROUTER = "the router"
MOST_PAIRS = 16
"""Pairs of engines that are tried: each is two short requests, and a failing one takes seconds."""
FEW_REQUESTS = 100
"""Requests that might have been split, below which nothing is said of a router."""
_AFTERWARDS = (Leg.NOT_LOADED, Leg.RELEASED, Leg.STRANDED)
"""What becomes of a leg that was counted before."""
_PATH = "/v1/completions"
_HITS = b"vllm:external_prefix_cache_hits_total"
_LEGS = b"warmroute_prefill_legs_total"
_METRICS_WAIT_S = 2.0
"""An engine's metrics may lag behind its answer."""
_LOOK_S = 0.2

_CONSUMER = (
    "start it with --kv-transfer-config and the same kv_connector as the prefill engine, "
    '"kv_role":"kv_consumer" and, with NIXL, an engine_id that is new at each start'
)
_REACH = (
    "for NIXL: set VLLM_NIXL_SIDE_CHANNEL_HOST of the prefill engine to an address that the decode "
    "engine reaches, open that port and UCX's, and give the prefill engine a new engine_id at each "
    "start"
)


class _Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes

    @property
    def said(self) -> str:
        """For a message."""
        return f"{self.status} {self.body[:200].decode('utf-8', 'replace')}"


async def findings(
    client: httpx.AsyncClient, engines: Sequence[Engine], settings: Settings
) -> list[Finding]:
    """Findings where some engines prefill for others; engines: those that answer."""
    prefill = [one for one in engines if settings.role_of(one.url) != "decode"]
    decode = [one for one in engines if settings.role_of(one.url) != "prefill"]
    found = []
    if not settings.replicas and settings.discovery == "off":
        what = "every engine prefills for others, so none answers clients"
        found.append(wrong(BETWEEN, what, "list the engines that decode in `replicas` (--replica)"))
    elif not settings.replicas:
        what = "whether engines that discovery finds can fetch was not tried"
        found.append(note(BETWEEN, what, "name one of them with --replica"))
    else:
        found += await _pairs(client, prefill, decode, connector_of(settings))
    found += await _versions(client, engines)
    found += await _router(client, settings)
    return found


async def _versions(client: httpx.AsyncClient, engines: Sequence[Engine]) -> list[Finding]:
    versions: dict[str, list[str]] = {}
    for engine in engines:
        answer = await client.get(engine.url + "/version")
        try:
            version = str(msgspec.json.decode(answer.content)["version"])
        except (msgspec.DecodeError, KeyError, TypeError):
            continue
        versions.setdefault(version, []).append(engine.url)
    if len(versions) < 2:
        return []
    which = "; ".join(f"{each}: {', '.join(urls)}" for each, urls in sorted(versions.items()))
    what = f"engines that hand blocks to each other have different versions of vLLM: {which}"
    return [wrong(BETWEEN, what, "run one version: connectors compare a hash of it and refuse")]


async def _pairs(
    client: httpx.AsyncClient,
    prefill: Sequence[Engine],
    decode: Sequence[Engine],
    connector: Connector,
) -> list[Finding]:
    """Each prefill engine with each that decodes, one after the other."""
    found: list[Finding] = []
    tried, left_out = 0, 0
    for giver in prefill:
        takers = [
            (one, model)
            for one in decode
            if one is not giver and (model := _common(giver, one)) is not None
        ]
        if not takers:
            what = f"it prefills for nobody: no other engine decodes {', '.join(giver.models)}"
            fix = "list an engine that serves the same model, under the same name, in `replicas`"
            found.append(wrong(giver.url, what, fix))
        for taker, model in takers:
            if tried == MOST_PAIRS:
                left_out += 1
                continue
            tried += 1
            problem = await _pair(client, giver, taker, model, connector)
            if problem is not None:
                found.append(problem)
                if problem.where == giver.url:
                    break  # it would be the same with each that decodes
    if left_out:
        what = f"{left_out} further pairs of engines were not tried"
        found.append(note(BETWEEN, what, "name fewer engines"))
    if tried and not any(finding.where != BETWEEN or finding.wrong for finding in found):
        pairs = "the pair of engines hands" if tried == 1 else f"all {tried} pairs of engines hand"
        what = f"{pairs} blocks over"
        found.append(note(BETWEEN, what, "nothing to mend"))
    return found


def _common(one: Engine, other: Engine) -> str | None:
    """A model that both serve."""
    return next((name for name in one.models if name in other.models), None)


class _Prefiller(msgspec.Struct, frozen=True):
    """Of an engine, what a connector looks at."""

    name: str
    host: str
    rank: int = 0


async def _pair(
    client: httpx.AsyncClient, giver: Engine, taker: Engine, model: str, connector: Connector
) -> Finding | None:
    """Do as the router does, with a prompt that nobody has seen. None: it works."""
    prompt = secrets.token_hex(8) + " word" * PROBE_WORDS
    body = msgspec.json.encode(
        {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    )
    name = "doctor-" + secrets.token_hex(8)
    prefiller = _Prefiller(giver.url, parse_address(giver.url).host)
    try:
        await connector.meet(prefiller)
    except NoHandOverError as error:
        return _no_hand_over(giver, error)
    asking = connector.asking(name)
    try:
        first = await _ask(client, giver.url, bodies.prefill_body(body, _PATH, asking), name)
    except httpx.HTTPError as error:
        what = f"it did not answer a request to prefill: {error or type(error).__name__}"
        return wrong(giver.url, what, "read the engine's log")
    if first.status != 200:
        what = f"it refused a request to prefill for another engine: {first.said}"
        return wrong(giver.url, what, "read the engine's log; set replica_api_key if it needs one")
    try:
        told = bodies.read_answer(first.body)
    except msgspec.DecodeError:
        what = f"its answer to a request to prefill is not vLLM's: {first.said}"
        return wrong(giver.url, what, "give the URL of a vLLM server")
    try:
        params = connector.telling(told, name, prefiller)
    except NoHandOverError as error:
        return _no_hand_over(giver, error)
    pair = f"{taker.url} fetches from {giver.url}"
    before = await _hits(client, taker.url)
    try:
        second = await _ask(client, taker.url, bodies.prefill_body(body, _PATH, params), name)
    except httpx.HTTPError as error:
        what = f"{pair}: it did not answer: {error or type(error).__name__}"
        return wrong(BETWEEN, what, _REACH)
    if second.status != 200:
        return wrong(BETWEEN, f"{pair}: it failed: {second.said}", _REACH)
    if before is None:
        what = f"{pair}: whether it does is not known, as its metrics do not tell"
        return note(BETWEEN, what, "remove --disable-log-stats")
    if _keeps(second.body):
        what = f"{pair}: it then keeps its own blocks for 480 s, and no router fetches them"
        return wrong(BETWEEN, what, "leave bidirectional_kv_xfer out of its --kv-transfer-config")
    if not await _hit_more(client, taker.url, before):
        what = f"{pair}: it does not, and computed the whole prompt (it has no connector)"
        return wrong(BETWEEN, what, _CONSUMER)
    return None


def _no_hand_over(giver: Engine, why: NoHandOverError) -> Finding:
    what, _, fix = str(why).rpartition(": ")
    return wrong(giver.url, f"it prefills for nobody: it {what}", fix)


def _keeps(body: bytes) -> bool:
    """Whether an engine that has fetched blocks offers its own, which it keeps for that."""
    try:
        return bool(bodies.read_answer(body).params)
    except msgspec.DecodeError:
        return False


async def _ask(client: httpx.AsyncClient, url: str, body: bytes, name: str) -> _Answer:
    headers = {"content-type": "application/json", "x-request-id": name}
    answer = await client.post(url + _PATH, content=body, headers=headers)
    return _Answer(answer.status_code, answer.content)


async def _hit_more(client: httpx.AsyncClient, url: str, before: float) -> bool:
    """Whether it has fetched tokens from another engine since."""
    try:
        async with asyncio.timeout(_METRICS_WAIT_S):
            while (await _hits(client, url) or 0.0) <= before:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return False
    return True


async def _hits(client: httpx.AsyncClient, url: str) -> float | None:
    """Tokens that an engine has fetched by its connector. None where its metrics do not tell."""
    answer = await client.get(url + "/metrics", follow_redirects=True)
    values = [value for _, value in _series(answer.content, _HITS)]
    if not values:
        return None  # vLLM tells of them from its start, with a connector or without
    return sum(values)


def _series(page: bytes, metric: bytes) -> list[tuple[bytes, float]]:
    """The labels and values of a metric's series."""
    found = []
    for line in page.split(b"\n"):
        if line.startswith((metric + b"{", metric + b" ")):
            series, _, value = line.rpartition(b" ")
            found.append((series[len(metric) :], float(value)))
    return found


async def _router(client: httpx.AsyncClient, settings: Settings) -> list[Finding]:
    """Whether a router that runs here with these settings splits prompts."""
    host = f"[{settings.admin_host}]" if ":" in settings.admin_host else settings.admin_host
    where = f"http://{host}:{settings.admin_port}/metrics"
    try:
        # The engines' key is none of its business.
        answer = await client.get(where, headers={"authorization": ""})
    except httpx.HTTPError:
        answer = None
    series = _series(answer.content, _LEGS) if answer is not None else []
    counts = {labels.split(b'"')[1].decode(): value for labels, value in series}
    if not counts:
        what = f"whether it splits prompts is not known: {where} does not tell"
        fix = "run the doctor beside the router, with the same admin_host and admin_port"
        return [note(ROUTER, what, fix)]
    return split(counts)


def split(counts: dict[str, float]) -> list[Finding]:
    """What a router's counts of first legs, by outcome, say."""
    handed = counts.get(Leg.HANDED_OVER, 0.0) - counts.get(Leg.NOT_LOADED, 0.0)
    asked = sum(counts[word] for word in counts if word not in _AFTERWARDS)
    if handed > 0:
        return [note(ROUTER, f"{handed:.0f} prompts were prefilled elsewhere", "nothing to mend")]
    if asked < FEW_REQUESTS:
        what = f"no prompt was prefilled elsewhere yet, of {asked:.0f} requests"
        return [note(ROUTER, what, "ask again when there was more traffic")]
    why = {word: count for word, count in counts.items() if word != Leg.HANDED_OVER}
    most = max(why, key=lambda word: why[word])
    what = (
        f"prefill and decode apart does not happen: of {asked:.0f} requests none was prefilled "
        f"elsewhere, mostly because of {most}"
    )
    fix = "docs/operate/disaggregation.md says what each outcome means"
    if most in (Leg.CHEAPER_LOCAL, Leg.UNSUPPORTED):
        return [note(ROUTER, what, fix + "; the prefill engines are not needed for this traffic")]
    return [wrong(ROUTER, what, fix)]
