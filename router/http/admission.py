"""Tenants at the front port: who sends a request, whether there is room for it, what it used.

Nothing of this runs where no tenants are set up: `Gateway.tenants` is None then.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import msgspec

from router.http.local_reply import AUTHENTICATE, Reply, Unauthorized
from router.http.routes import Form, Isolation, PathRule, Treatment
from router.prompt import NOT_JSON, decoded
from router.prompt.canonical import ABSENT, BRACKET, MOST_TOKENS, number
from router.telemetry.record import Outcome
from router.tenants.accounts import INPUT, NOTHING, OUTPUT, Denial, Reservation
from router.tenants.answers import (
    Refusal,
    bad_body,
    forbidden_path,
    not_kept,
    unauthorized,
    unbounded,
    unbounded_path,
)
from router.tenants.authenticator import NO_CREDENTIALS, Peer
from router.tenants.identity import AuthFailure, Identity
from router.tenants.salt import own_salt, with_member

if TYPE_CHECKING:
    from router.http.events import Usage
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.prompt import Prompt
    from router.scheduling.placer import Placement
    from router.telemetry.record import Finished
    from router.tenants.tenants import Tenants
    from router.types import Chain

# Of a body whose prompt is not read: bytes for a token.
_BYTES_PER_TOKEN = 4.0
# A key that was good so many seconds before the body was whole is not looked at again then.
_GOOD_FOR_S = 0.25
# How an API names the longest answer. Of a chat, the name that wins over its other one.
_LONGEST_ANSWER = {
    "chat": b'"max_completion_tokens":%d',
    "completions": b'"max_tokens":%d',
    "messages": b'"max_tokens":%d',
    "responses": b'"max_output_tokens":%d',
}
# /invocations takes the body of a chat or of a completion.
_EITHER = b'"max_tokens":%(n)d,"max_completion_tokens":%(n)d'
# Paths of chats whose prompts are not read -> the same.
_LONGEST_UNREAD = {
    "/v1/chat/completions/batch": _LONGEST_ANSWER["chat"],
    "/cohere/v2/chat": b'"max_tokens":%d',
}
_GENERATES = "/generate"
"""SGLang's own: its answers are as long as an object inside the body says, and tell no usage."""
_OUTCOMES = {401: Outcome.UNAUTHORIZED, 503: Outcome.OVERLOADED}


class Answer(Protocol):
    """What of a replica's answer has gone to the client."""

    events: int

    @property
    def ended(self) -> bool:
        """The API's own end has come."""

    def usage(self) -> Usage | None:
        """What the engine has reported up to now."""


class Asked(Protocol):
    """What a request asks for."""

    @property
    def gateway(self) -> Gateway: ...
    @property
    def request(self) -> Request: ...
    @property
    def record(self) -> Finished: ...
    @property
    def prompt(self) -> Prompt | None: ...


class Books(Asked, Protocol):
    """What is known of a request."""

    @property
    def placement(self) -> Placement | None: ...
    @property
    def relay(self) -> Answer | None: ...
    @property
    def usage(self) -> Usage | None: ...

    identity: Identity | None
    reservation: Reservation | None
    common: Chain | None


class Kept(Protocol):
    """The response or conversation that a request names."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> int:
        """What stands for it and its tenant; 0 where none is named."""


class Asking(Books, Protocol):
    """A request on its way in."""

    connecting: asyncio.Task[None] | None

    @property
    def seek(self) -> Kept | None:
        """Where its path is of what engines keep."""

    @property
    def client(self) -> Peer: ...
    @property
    def is_over(self) -> bool:
        """Nobody waits for it any more."""

    def read(self) -> None:
        """It is known who sends it."""

    def prepare(self) -> None:
        """There is room for it."""

    def waits(self) -> None:
        """It goes on later."""

    def reply(self, reply: Reply) -> None:
        """Answer from here."""

    def crashed(self, exc: Exception) -> None:
        """The router itself has failed on it."""


class _Answers(msgspec.Struct, gc=False):
    """How much a chat asks for."""

    n: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT


_NO_ANSWERS = _Answers()
_decode_answers = msgspec.json.Decoder(_Answers).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_open(rule: PathRule, method: bytes) -> bool:
    """Whether it takes no key: what tells nothing, and a browser's question before it sends one."""
    treatment = rule.treatment
    return treatment is Treatment.HEALTH or treatment is Treatment.REFUSE or method == b"OPTIONS"


def recognised(tenants: Tenants, request: Request, client: Peer) -> bool:
    """Find out by its head who sends a request with a body. False when it takes `recognise_later`.

    Raises Unauthorized, so that nothing of a stranger's body is kept.
    """
    found = tenants.auth.identify(request.credentials or NO_CREDENTIALS, client)
    if found is None:
        return False
    _recognise(tenants, request, found)
    return True


async def recognise_later(tenants: Tenants, request: Request) -> None:
    """The same, after a look at the keys of the tokens' issuer."""
    found = await tenants.auth.identify_later(request.credentials or NO_CREDENTIALS)
    _recognise(tenants, request, found)


def _recognise(tenants: Tenants, request: Request, found: Identity | AuthFailure) -> None:
    if isinstance(found, AuthFailure):
        tenants.count_stranger(found)
        raise Unauthorized(found)
    request.identity = found
    request.identified = monotonic()


def identified(exchange: Asking) -> bool:
    """Find out who sends a request. False when it was refused, or goes on later by itself."""
    tenants, request = exchange.gateway.tenants, exchange.request
    assert tenants is not None
    if is_open(request.rule, request.method):
        return True
    if request.identity is not None and monotonic() - request.identified < _GOOD_FOR_S:
        return _taken(exchange, tenants, request.identity)
    given = request.credentials or NO_CREDENTIALS
    found = tenants.auth.identify(given, exchange.client)
    if found is None:
        exchange.connecting = exchange.gateway.spawn(_identify_later(exchange, tenants))
        return False
    return _taken(exchange, tenants, found)


async def _identify_later(exchange: Asking, tenants: Tenants) -> None:
    try:
        found = await tenants.auth.identify_later(exchange.request.credentials or NO_CREDENTIALS)
        exchange.connecting = None
        if _taken(exchange, tenants, found):
            exchange.read()
    except Exception as exc:
        exchange.crashed(exc)


def _taken(exchange: Asking, tenants: Tenants, found: Identity | AuthFailure) -> bool:
    request = exchange.request
    if isinstance(found, AuthFailure):
        tenants.count_stranger(found)
        _refuse(exchange, unauthorized(found))
        return False
    exchange.identity = found
    exchange.record.tenant, exchange.record.key_id = found.tenant, found.key
    if exchange.gateway.engine_authorization:
        request.headers += (b"authorization", exchange.gateway.engine_authorization)
    return True


def admitted(exchange: Asking, identity: Identity) -> bool:
    """See whether it may ask this, set its cache apart, and reserve what it may need.

    False when it was refused, or goes on with `prepare` later by itself.
    """
    tenants = exchange.gateway.tenants
    assert tenants is not None
    refused = _not_allowed(exchange, tenants, identity)
    if refused is None and tenants.isolates:
        refused = _set_apart(exchange, tenants, identity)
    if refused is None:
        decision = tenants.reserve(identity, exchange.record.model, *estimate(exchange))
        if isinstance(decision, asyncio.Future):
            decision.add_done_callback(lambda future: _decided(exchange, tenants, future.result()))
            exchange.waits()
            return False
        if not isinstance(decision, Refusal):
            exchange.reservation = decision
            return True
        refused = decision
    _refuse(exchange, refused)
    return False


def _not_allowed(exchange: Asking, tenants: Tenants, identity: Identity) -> Refusal | None:
    request, prompt, model = exchange.request, exchange.prompt, exchange.record.model
    kept = exchange.seek
    if kept is not None and kept.key and not exchange.gateway.holders.find(kept.key):
        # Engines would give it to whoever knows its id.
        tenants.count_refusal(identity, "response")
        return not_kept(kept.name)
    names = request.rule.names_model and (request.body or request.upgrade)
    if names or model:
        refused = tenants.check_model(identity, model)
        if refused is not None:
            return refused
    if not (identity.max_prompt_tokens or identity.max_output_tokens):
        return None
    if prompt is None:
        return _unread_allowed(request, tenants, identity)
    size = exchange.gateway.placer.estimate(prompt)
    refused = tenants.check_length(identity, size, prompt.output_limit)
    if refused is None and identity.max_output_tokens:
        return _bounded(request, prompt, identity.max_output_tokens)
    return refused


def _bounded(request: Request, prompt: Prompt, longest: int) -> Refusal | None:
    """Have the engine bound the answer, whatever else the body says of it."""
    rule = request.rule
    if rule.api == "generate":
        # Its place is in an object inside.
        return None if prompt.output_limit else unbounded(longest)
    if rule.api == "score":
        return None
    prompt.output_limit = limit = prompt.output_limit or longest
    member = _LONGEST_ANSWER.get(rule.api)
    told = _EITHER % {b"n": limit} if member is None else member % limit
    # Always, as the last of its name: engines read numbers where the router sees none.
    body = with_member(request.body, told)
    if body is None:
        return bad_body()
    request.body = body
    return None


def _unread_allowed(request: Request, tenants: Tenants, identity: Identity) -> Refusal | None:
    """The same for a body whose prompts are not read."""
    member = _LONGEST_UNREAD.get(request.rule.path)
    if member is None:
        bounded = request.rule.path != _GENERATES or not identity.max_output_tokens
        return None if bounded else unbounded_path()
    size, (limit, _) = len(request.body) / _BYTES_PER_TOKEN, _unread(request.body)
    refused = tenants.check_length(identity, size, limit)
    if refused is None and identity.max_output_tokens:
        body = with_member(request.body, member % (limit or identity.max_output_tokens))
        if body is None:
            return bad_body()
        request.body = body
    return refused


def _set_apart(exchange: Asking, tenants: Tenants, identity: Identity) -> Refusal | None:
    """Put the salt into the body, and into what the index knows of the prompt."""
    request, prompt = exchange.request, exchange.prompt
    isolation = request.rule.isolation
    if isolation is Isolation.IMPOSSIBLE:
        # Without a body, too: prompts may come in its query, or through a WebSocket.
        tenants.count_refusal(identity, "isolation")
        return forbidden_path()
    if isolation is Isolation.NEEDLESS or not request.body:
        return None
    own = own_salt(request.body) if prompt is None else prompt.own_salt
    salt = tenants.salt_of(identity, request.body)
    salted = tenants.salted(salt, request.body, own)
    if salted is None:
        return bad_body()
    request.body = salted
    if prompt is not None:
        exchange.common = prompt.chain
        prompt.chain = tenants.apart(salt, prompt.chain)
        if prompt.more:
            prompt.more = tuple(tenants.apart(salt, chain) for chain in prompt.more)
    return None


def estimate(exchange: Asked) -> tuple[float, float]:
    """Tokens of the prompt, and of the longest answer that it allows."""
    prompt, placer = exchange.prompt, exchange.gateway.placer
    if prompt is None:
        request, output = exchange.request, 0.0
        if request.rule.path in _LONGEST_UNREAD:
            limit, answers = _unread(request.body)
            output = float(limit or placer.usual_answer(exchange.record.model)) * answers
        elif request.rule.path == _GENERATES:
            output = placer.usual_answer(exchange.record.model)
        return len(request.body) / _BYTES_PER_TOKEN, min(output, MOST_TOKENS)
    output = float(prompt.output_limit or placer.usual_answer(prompt.model))
    if prompt.several:
        output *= _answers(exchange.request.body) * (1 + len(prompt.more))
        # Redis refuses whole numbers of 18 digits, since Lua writes them as 1e+17.
        output = min(output, MOST_TOKENS)
    return placer.estimate(prompt), output


def _answers(body: bytes) -> int:
    return max(number(_read_answers(body).n), 1)


def _unread(body: bytes) -> tuple[int, int]:
    """The longest answer that a chat asks for, 0 for any, and how many answers: of several
    conversations, where its messages are lists of them."""
    found = _read_answers(body)
    limit = number(found.max_completion_tokens) or number(found.max_tokens)
    conversations = 1
    try:
        messages = _decode_array(found.messages) if found.messages is not ABSENT else []
    except NOT_JSON:
        messages = []
    if messages and memoryview(messages[0])[0] == BRACKET:
        conversations = len(messages)
    return limit, conversations * max(number(found.n), 1)


def _read_answers(body: bytes) -> _Answers:
    return decoded(_decode_answers, body) or _NO_ANSWERS


def _decided(exchange: Asking, tenants: Tenants, decision: Reservation | Denial) -> None:
    """Redis has decided."""
    identity = exchange.identity
    assert identity is not None
    if exchange.is_over:
        if isinstance(decision, Reservation):
            tenants.ledger.settle(decision, NOTHING)
        return
    try:
        if isinstance(decision, Denial):
            _refuse(exchange, tenants.refused(identity, decision))
        else:
            exchange.reservation = decision
            exchange.prepare()
    except Exception as exc:
        exchange.crashed(exc)


def settle(books: Books, identity: Identity, *, left: bool) -> None:
    """A request is over: count what it used. Called once for each that has an identity.

    left: its client did not wait for the answer.
    """
    tenants, relay, reservation = books.gateway.tenants, books.relay, books.reservation
    assert tenants is not None
    prompt_tokens = cached = output = 0
    if relay is not None and books.record.status == 200:
        usage = books.usage or relay.usage()
        # Of an answer that broke off the engine has not told all.
        events = 0 if relay.ended else relay.events
        if usage is not None:
            prompt_tokens, cached = usage.prompt_tokens, max(usage.cached_tokens, 0)
            output = max(usage.output_tokens, events)
        elif reservation is not None:
            # A whole answer that tells no usage may be as long as was reserved.
            told = relay.ended or left or events > 0
            prompt_tokens = reservation.need[INPUT]
            output = events if told else reservation.need[OUTPUT]
        placement = books.placement
        if books.common is not None and placement is not None:
            tenants.count_cost(identity, books.common, placement.held_tokens, placement.tokens)
    elif left and reservation is not None and books.record.overhead >= 0.0:
        # It was with an engine, which has begun with the prompt.
        prompt_tokens = reservation.need[INPUT]
    model = books.record.model
    tenants.settle(reservation, identity, model, prompt_tokens, cached, output)


def rate_headers(books: Books, identity: Identity) -> bytes:
    """How limits stand, for the client's library, as lines of a head."""
    tenants = books.gateway.tenants
    assert tenants is not None
    anthropic = books.request.rule.form is Form.ANTHROPIC
    return tenants.rate_headers(identity, books.record.model, anthropic)


def _refuse(exchange: Asking, refused: Refusal) -> None:
    """Answer with a refusal, in the form of the API that was asked."""
    lines = b""
    if refused.retry_after and refused.status != 503:  # which all of these have
        lines = b"retry-after: %d\r\n" % refused.retry_after
    if refused.status == 401:
        lines += AUTHENTICATE
    body = refused.body(exchange.request.rule.form is Form.ANTHROPIC)
    outcome = _OUTCOMES.get(refused.status, Outcome.REFUSED_TENANT)
    exchange.reply(Reply(refused.status, body, outcome, lines))
