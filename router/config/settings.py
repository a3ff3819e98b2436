"""Every setting: its name, type, default, bounds and meaning.

A field of `Settings` is all there is to a setting: flags, environment names, checks, --help and
docs/reference/configuration.md are made from it. Durations are seconds and sizes bytes.
"""

from __future__ import annotations

from typing import Annotated

from router.config.kinds import (
    File,
    Masked,
    Models,
    Names,
    Paths,
    Replicas,
    Secret,
    StateUrl,
    Switch,
    Text,
    Word,
    duration,
    share,
    size,
    whole,
)
from router.config.serving import (
    DISCOVERY,
    ENGINE,
    EXACT,
    FLEET,
    GIB,
    HEALTH,
    INSIGHT,
    KIB,
    MIB,
    STATE,
    ServingSettings,
    SettingInfo,
)

_POLICY = "the name of a policy (cache_aware) or module:Class"
_POLICY_FORM = r"[A-Za-z_]\w*|[A-Za-z_][\w.]*:[A-Za-z_]\w*"
_HEADER = "a header's name"
_HEADER_FORM = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_KEY_FORM = r"[A-Za-z0-9]([A-Za-z0-9./_-]{0,315}[A-Za-z0-9])?"
_ENDPOINT = "a ZMQ endpoint (tcp://{host}:5557)"
_ENDPOINT_FORM = r"|tcp://[^\s/]+:[0-9]{1,5}|ipc://\S+"
_TOKENS = whole(0, 1_000_000_000)


class Settings(ServingSettings, frozen=True, kw_only=True):
    """All settings, checked, unless built by hand; `load` makes one. Empty text means not set."""

    replicas: Annotated[
        tuple[str, ...],
        SettingInfo(
            FLEET,
            Replicas(),
            "The replicas' base URLs, with a path prefix where they have one but without `/v1`. "
            "At least one. The flag may be repeated; elsewhere commas separate, or a YAML list.",
            flag="--replica",
        ),
    ] = ()
    policy: Annotated[
        str,
        SettingInfo(
            FLEET,
            Text(_POLICY, _POLICY_FORM),
            "How a replica is chosen: `cache_aware`, `consistent_hash`, `least_loaded`, "
            "`power_of_two`, `random`, `round_robin` or `session`; or `module:Class` for your own.",
        ),
    ] = "cache_aware"
    expected_models: Annotated[
        tuple[str, ...],
        SettingInfo(
            FLEET,
            Models(),
            "Names of models that are served now and then, such as one scaled to zero: while no "
            "replica serves it, a request gets a 503 with `Retry-After` rather than a 404, and is "
            "counted under the model's name. A model whose replica has left is remembered anyway.",
        ),
    ] = ()
    lora_resolver: Annotated[
        bool,
        SettingInfo(
            FLEET,
            Switch(),
            "Ask an engine before a model that nobody lists is called unknown: with a LoRA "
            "resolver it loads the adapter then. Off: the router answers 404 by itself.",
        ),
    ] = True
    session_header: Annotated[
        str,
        SettingInfo(
            FLEET,
            Text(_HEADER, _HEADER_FORM, lower=True),
            "The request header that names a session, for policies that keep sessions together.",
        ),
    ] = "x-session-id"
    stream_usage: Annotated[
        bool,
        SettingInfo(
            FLEET,
            Switch(),
            "Ask the replica for token usage in streams whose client did not, and take it out "
            "again on the way back. Off: bodies are never touched, less is learned.",
        ),
    ] = True
    default_model: Annotated[
        str,
        SettingInfo(
            FLEET,
            Text("a model's name, at most 256 characters", r"\S{0,256}"),
            "The model of requests that name none, where the replicas serve different ones. "
            "Without it such requests are refused with 400.",
        ),
    ] = ""
    extra_paths: Annotated[
        tuple[str, ...],
        SettingInfo(
            FLEET,
            Paths(),
            "Paths to balance besides those of [paths.md](paths.md), for plugins of the engines. "
            "`/*` at the end stands for all below a path.",
        ),
    ] = ()
    trust_kv_transfer: Annotated[
        bool,
        SettingInfo(
            FLEET,
            Switch(),
            "Pass on `kv_transfer_params` and the like from clients. Only where every client is a "
            "router of your own: they tell an engine whose KV blocks to read, from where.",
        ),
    ] = False
    replica_api_key: Annotated[
        str,
        SettingInfo(
            FLEET,
            Secret(),
            "Key for the router's own calls to replicas (health, models, metrics), sent as a "
            "bearer token. Clients' requests keep their own. No flag: environment or file only.",
        ),
    ] = Masked("")
    replica_ca: Annotated[
        str,
        SettingInfo(
            FLEET,
            File(),
            "CA certificates (PEM) to trust for `https` replicas instead of the system's.",
        ),
    ] = ""
    replica_verify: Annotated[
        bool, SettingInfo(FLEET, Switch(), "Check the certificates of `https` replicas.")
    ] = True

    discovery: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Word(("off", "kubernetes", "dns", "file")),
            "Find replicas and follow their changes, besides those listed in `replicas`. "
            "`kubernetes` needs `pip install '.[kubernetes]'` in the source folder; see "
            "[kubernetes.md](../operate/kubernetes.md).",
        ),
    ] = "off"
    discovery_services: Annotated[
        tuple[str, ...],
        SettingInfo(
            DISCOVERY,
            Names(),
            "With `kubernetes`: the Services whose endpoints are the replicas. Either these or "
            "`discovery_selector`.",
        ),
    ] = ()
    discovery_selector: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Text("a label selector, such as app=vllm,tier!=test", r"[A-Za-z0-9!=()., _/-]*"),
            "With `kubernetes`: the label selector of the pods that are the replicas.",
        ),
    ] = ""
    discovery_namespaces: Annotated[
        tuple[str, ...],
        SettingInfo(
            DISCOVERY,
            Names(),
            "With `kubernetes`: where to look; `*` for all namespaces, none for the router's own.",
        ),
    ] = ()
    discovery_port: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Text(
                "a port's number, its name, or annotation:KEY",
                rf"[a-z0-9-]{{0,63}}|annotation:{_KEY_FORM}",
            ),
            "With `kubernetes`: the replicas' port, by number, by name, or by a pod's annotation "
            "(`annotation:KEY`). Not needed where they have only one.",
        ),
    ] = ""
    discovery_model: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Text("label:KEY or annotation:KEY", rf"((label|annotation):{_KEY_FORM})?"),
            "With `kubernetes`: the label or annotation that names the models a replica serves, of "
            "the pod, or with `discovery_services` the label of the Service. Without it, or where "
            "a replica has no such mark, `/v1/models` is asked.",
        ),
    ] = ""
    discovery_scheme: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Word(("http", "https")),
            "With `kubernetes`: how the replicas are spoken to.",
        ),
    ] = "http"
    discovery_dns: Annotated[
        tuple[str, ...],
        SettingInfo(
            DISCOVERY,
            Replicas(),
            "With `dns`: URLs whose host has one address for each replica, such as a headless "
            "Service's `http://vllm-headless.llm.svc:8000`.",
        ),
    ] = ()
    discovery_file: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            File(),
            "With `file`: a YAML or JSON list of URLs, or of mappings with `url`, `models` and "
            "`id`. A file that is wrong, empty or missing leaves the fleet as it was.",
        ),
    ] = ""
    discovery_interval: Annotated[
        float,
        SettingInfo(DISCOVERY, duration(), "With `dns` and `file`: time between two readings."),
    ] = 5.0

    health_interval: Annotated[
        float, SettingInfo(HEALTH, duration(), "Time between two probes of a replica's `/health`.")
    ] = 1.0
    health_timeout: Annotated[
        float, SettingInfo(HEALTH, duration(), "A probe without an answer by then has failed.")
    ] = 2.0
    unhealthy_after: Annotated[
        int, SettingInfo(HEALTH, whole(1, 1000), "Failed probes in a row that take a replica out.")
    ] = 2
    breaker_failures: Annotated[
        int,
        SettingInfo(
            HEALTH,
            whole(1, 1000),
            "Failed requests in a row that open a replica's circuit breaker.",
        ),
    ] = 3
    breaker_cooldown: Annotated[
        float,
        SettingInfo(
            HEALTH, duration(0), "How long an open breaker waits before it lets one request try."
        ),
    ] = 2.0
    slow_start: Annotated[
        float,
        SettingInfo(
            HEALTH, duration(0), "Time in which a new or recovered replica grows to its full share."
        ),
    ] = 10.0

    metrics_interval: Annotated[
        float,
        SettingInfo(ENGINE, duration(), "Time between two readings of a replica's `/metrics`."),
    ] = 1.0
    models_interval: Annotated[
        float,
        SettingInfo(ENGINE, duration(), "Time between two readings of a replica's `/v1/models`."),
    ] = 10.0
    kv_cache_tokens: Annotated[
        int,
        SettingInfo(
            ENGINE,
            _TOKENS,
            "Tokens a replica's KV cache in GPU memory holds, that of each data-parallel rank; "
            "0 reads it from the engine's metrics.",
        ),
    ] = 0
    kv_offload_tokens: Annotated[
        int,
        SettingInfo(
            ENGINE,
            _TOKENS,
            "Tokens that a tier behind it (CPU memory, disk, LMCache, Mooncake) holds; 0 reads "
            "it from the engine's metrics (`kv_offloading_size`).",
        ),
    ] = 0
    kv_cache_guess: Annotated[
        int,
        SettingInfo(
            ENGINE,
            whole(1, 1_000_000_000),
            "Tokens assumed while the cache's size is unknown; err high.",
        ),
    ] = 2_000_000
    prefill_rate: Annotated[
        int, SettingInfo(ENGINE, _TOKENS, "Prefill tokens a second of one replica; 0 learns it.")
    ] = 0

    state: Annotated[
        str,
        SettingInfo(
            STATE,
            StateUrl(),
            "The Redis or Valkey that routers share what they know through; none: each router for "
            "itself. Also through Sentinels, `redis+sentinel://a:26379,b:26379/mymaster`, and any "
            "nodes of a cluster, `redis://a:6379,b:6379`.",
        ),
    ] = ""
    state_password: Annotated[
        str,
        SettingInfo(
            STATE,
            Secret(),
            "Its password. The user, if there is one, belongs into the URL. No flag: environment "
            "or file only.",
        ),
    ] = Masked("")
    state_ca: Annotated[
        str,
        SettingInfo(
            STATE, File(), "CA certificates (PEM) to trust for `rediss` instead of the system's."
        ),
    ] = ""
    state_prefix: Annotated[
        str,
        SettingInfo(
            STATE,
            Text("letters, digits, and . _ - : within 100 characters", r"[A-Za-z0-9._:-]{1,100}"),
            "What the names of all keys begin with: routers with the same one share.",
        ),
    ] = "warmroute"
    workers: Annotated[
        int,
        SettingInfo(
            STATE,
            whole(1, 256),
            "Processes that serve the same port, and share what they know; about one for a core.",
        ),
    ] = 1

    exact: Annotated[
        bool,
        SettingInfo(
            EXACT,
            Switch(),
            "Go by what the engines tell of their KV caches, and tokenise prompts as they do. "
            "Needs `pip install '.[exact]'` in the source folder and KV events on in the engines; "
            "a replica or model for which it cannot be used is routed as ever.",
        ),
    ] = False
    exact_events: Annotated[
        str,
        SettingInfo(
            EXACT,
            Text(_ENDPOINT, _ENDPOINT_FORM),
            "Where KV events are, as a ZMQ endpoint in which `{host}` stands for the replica's "
            "host, for engines that do not tell (`GET /kv_event_sources`). Without `{host}` it is "
            "an address to bind, for engines that connect.",
        ),
    ] = ""
    exact_replay: Annotated[
        str,
        SettingInfo(
            EXACT, Text(_ENDPOINT, _ENDPOINT_FORM), "The same for lost events: their replay."
        ),
    ] = ""
    exact_topic: Annotated[
        str,
        SettingInfo(
            EXACT, Text("a topic", r"\S*"), "The topic of KV events; empty takes every one."
        ),
    ] = ""
    exact_ranks: Annotated[
        int,
        SettingInfo(
            EXACT,
            whole(1, 1024),
            "Data-parallel ranks of a replica, each on the next port, with `exact_events`.",
        ),
    ] = 1
    exact_tokenizer: Annotated[
        str,
        SettingInfo(
            EXACT,
            Text("a folder, a hub name, or model=place,...", r"[^\x00]*"),
            "Where the models' tokenizers are, as folders or hub names: one for all models, or "
            "`model=place` for some, separated by commas. Empty takes what the engines say.",
        ),
    ] = ""
    exact_chat_template: Annotated[
        str,
        SettingInfo(
            EXACT,
            File(),
            "The chat template the engines are given with `--chat-template`, if they are.",
        ),
    ] = ""
    exact_download: Annotated[
        bool,
        SettingInfo(
            EXACT, Switch(), "Fetch tokenizers from the hub; off uses only those there are."
        ),
    ] = True
    exact_budget: Annotated[
        float,
        SettingInfo(
            EXACT,
            duration(),
            "A prompt that would take longer to tokenise is routed by what was sent before.",
        ),
    ] = 0.1
    exact_deadline: Annotated[
        float,
        SettingInfo(
            EXACT,
            duration(),
            "How long a prompt on its way to a replica counts as held there, unless the engine "
            "tells of it before.",
        ),
    ] = 60.0
    exact_memory: Annotated[
        int,
        SettingInfo(EXACT, size(1 * MIB, 64 * GIB), "Memory for tokens of texts seen before."),
    ] = 256 * MIB
    exact_max_body: Annotated[
        int,
        SettingInfo(
            EXACT,
            size(1 * KIB, 64 * MIB),
            "Larger bodies are not tokenised: reading one would hold up the others.",
        ),
    ] = 512 * KIB
    exact_threads: Annotated[
        int, SettingInfo(EXACT, whole(1, 64), "Threads that tokenise long prompts.")
    ] = 2

    explain_headers: Annotated[
        bool,
        SettingInfo(
            INSIGHT,
            Switch(),
            "Let a request with `x-warmroute-explain: 1` have response headers that name the "
            "replica and the tokens predicted.",
            live=True,
        ),
    ] = False
    explain_requests: Annotated[
        int, SettingInfo(INSIGHT, whole(0, 1_000_000), "Latest requests kept for `/explain`.")
    ] = 1000
    access_log: Annotated[
        float,
        SettingInfo(INSIGHT, share(), "Share of the requests logged; 0 logs none.", live=True),
    ] = 1.0
    access_log_blocks: Annotated[
        bool,
        SettingInfo(
            INSIGHT, Switch(), "Put the prompt's block hashes into the access log, for replay."
        ),
    ] = False
    log_level: Annotated[
        str,
        SettingInfo(
            INSIGHT,
            Word(("debug", "info", "warning", "error")),
            "Least severe messages logged.",
            live=True,
        ),
    ] = "info"
    log_format: Annotated[
        str,
        SettingInfo(
            INSIGHT,
            Word(("auto", "json", "text")),
            "How both logs are written: `text` for people, `json`, or `auto`, which is text at a "
            "terminal and JSON elsewhere.",
        ),
    ] = "auto"
