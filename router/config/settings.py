"""Every setting: its name, type, default, bounds and meaning.

A field of `Settings` is all there is to a setting: flags, environment names, checks, --help and
docs/reference/configuration.md are made from it. Durations are seconds and sizes bytes.
"""

from __future__ import annotations

from typing import Annotated

from router.config.insight import InsightSettings
from router.config.kinds import (
    POLICY_FORM,
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
    KIB,
    MIB,
    STATE,
    SettingInfo,
)
from router.config.tiers import Media, TierRates
from router.types import Role

_POLICY = "the name of a policy (cache_aware) or module:Class"
_HEADER = "a header's name"
_HEADER_FORM = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_KEY_FORM = r"[A-Za-z0-9]([A-Za-z0-9./_-]{0,315}[A-Za-z0-9])?"
_ENDPOINT = "a ZMQ endpoint (tcp://{host}:5557)"
_ENDPOINT_FORM = r"|tcp://[^\s/]+:[0-9]{1,5}|ipc://\S+"
_TOKENS = whole(0, 1_000_000_000)


class Settings(InsightSettings, frozen=True, kw_only=True):
    """All settings, checked, unless built by hand; `load` makes one. Empty text means not set."""

    replicas: Annotated[
        tuple[str, ...],
        SettingInfo(
            FLEET,
            Replicas(),
            "The base URLs of the replicas, without `/v1`, with a path prefix where they have "
            "one. At least one is needed, unless `discovery` finds them. The flag may be "
            "repeated; in the environment commas separate the URLs, in the file a YAML list may.",
            flag="--replica",
        ),
    ] = ()
    prefill: Annotated[
        tuple[str, ...],
        SettingInfo(
            FLEET,
            Replicas(),
            "Base URLs of engines that prefill prompts for the replicas in `replicas`, which then "
            "fetch the KV blocks and decode: see [disaggregation](../operate/disaggregation.md). "
            "An engine listed in both does both; discovery may tell roles too. They need one of "
            "vLLM's KV connectors, see `kv_connector`.",
        ),
    ] = ()
    kv_connector: Annotated[
        str,
        SettingInfo(
            FLEET,
            Word(("auto", "nixl", "nixl_push", "mooncake", "store")),
            "How engines that prefill hand KV blocks to those that decode: `nixl` or `mooncake`, "
            "which `auto` tells apart, `nixl_push` for vLLM's `NixlPushConnector`, or `store` for "
            "engines with one store of blocks for all.",
        ),
    ] = "auto"
    mooncake_port: Annotated[
        int,
        SettingInfo(
            FLEET,
            whole(1, 65_535),
            "With Mooncake: the port of the prefill engines' bootstrap servers, "
            "`VLLM_MOONCAKE_BOOTSTRAP_PORT` there.",
        ),
    ] = 8998
    policy: Annotated[
        str,
        SettingInfo(
            FLEET,
            Text(_POLICY, POLICY_FORM),
            "How a replica is chosen: `cache_aware`, `consistent_hash`, `least_loaded`, "
            "`power_of_two`, `random`, `round_robin` or `session`; or `module:Class` for your own.",
        ),
    ] = "cache_aware"
    expected_models: Annotated[
        tuple[str, ...],
        SettingInfo(
            FLEET,
            Models(),
            "Models that are not always served, such as one that is scaled to zero. While no "
            "replica serves such a model, its requests get a 503 with `Retry-After` and not a "
            "404, and are counted under its name. Models that a replica served since the router "
            "started need not be listed.",
        ),
    ] = ()
    hold_timeout: Annotated[
        float,
        SettingInfo(
            FLEET,
            duration(0),
            "How long a request waits while no replica of its model is usable but one may come: "
            "scaled from zero, asleep, or starting again. Then it gets its 503. 0: not at all. "
            "With it the router is ready without a replica.",
        ),
    ] = 0.0
    wake_replicas: Annotated[
        bool,
        SettingInfo(
            FLEET,
            Switch(),
            "Wake a sleeping replica (`POST /wake_up`) for requests that wait for its model. Needs "
            "`hold_timeout`, and engines with `VLLM_SERVER_DEV_MODE=1`.",
        ),
    ] = False
    overflow: Annotated[
        str,
        SettingInfo(
            FLEET,
            File(),
            "Send what the fleet cannot take to other clusters or hosted APIs: the YAML file of "
            "these targets, their prices and daily budgets "
            "([overflow.md](../operate/overflow.md)). It costs money, and prompts leave the "
            "cluster.",
        ),
    ] = ""
    overflow_ttft: Annotated[
        float,
        SettingInfo(
            FLEET,
            duration(0),
            "With `overflow`: when a first token is predicted to come later than this, the coldest "
            "and cheapest request that waits goes out. Tenants may have their own. 0: requests go "
            "out only where they would be refused.",
            live=True,
        ),
    ] = 0.0
    lora_resolver: Annotated[
        bool,
        SettingInfo(
            FLEET,
            Switch(),
            "Before answering 404 for a model that no replica lists, ask an engine, which may "
            "load the adapter through a LoRA resolver. Off: the router answers 404 by itself.",
        ),
    ] = True
    session_header: Annotated[
        str,
        SettingInfo(
            FLEET,
            Text(_HEADER, _HEADER_FORM, lower=True),
            "A request header that names a session. Those that clients send by themselves are "
            "known without it ([http.md](http.md#what-names-a-session)).",
        ),
    ] = "x-session-id"
    stream_usage: Annotated[
        bool,
        SettingInfo(
            FLEET,
            Switch(),
            "Ask the replica for token usage in streams whose client did not ask, and remove it "
            "from the answer again. Off: no body is changed for that, and the router learns less.",
        ),
    ] = True
    default_model: Annotated[
        str,
        SettingInfo(
            FLEET,
            Text("a model's name, at most 256 characters", r"\S{0,256}"),
            "The model for requests that name none, where the replicas serve different models. "
            "Without it such requests are refused with 400.",
        ),
    ] = ""
    extra_paths: Annotated[
        tuple[str, ...],
        SettingInfo(
            FLEET,
            Paths(),
            "Paths to balance by load besides those of [paths.md](paths.md), for plugins of the "
            "engines. `/*` at the end stands for everything below a path.",
        ),
    ] = ()
    trust_kv_transfer: Annotated[
        bool,
        SettingInfo(
            FLEET,
            Switch(),
            "Pass `kv_transfer_params` and similar fields, and headers that tell a sidecar where "
            "to connect, from clients on to the engines. They name the hosts that KV blocks are "
            "read from, so turn this on only where every client is a router of your own.",
        ),
    ] = False
    replica_api_key: Annotated[
        str,
        SettingInfo(
            FLEET,
            Secret(),
            "API key for the router's own calls to replicas (health, models, metrics), sent as a "
            "bearer token. Clients' requests keep their own key. No flag: environment or file "
            "only.",
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
            "How to find replicas and follow their changes, besides those listed in `replicas`. "
            "`kubernetes` needs `pip install '.[kubernetes]'` in the source folder; see "
            "[kubernetes.md](../operate/kubernetes.md).",
        ),
    ] = "off"
    discovery_services: Annotated[
        tuple[str, ...],
        SettingInfo(
            DISCOVERY,
            Names(),
            "With `kubernetes`: the Services whose endpoints are the replicas. Give either this "
            "or `discovery_selector`.",
        ),
    ] = ()
    discovery_selector: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Text("a label selector, such as app=vllm,tier!=test", r"[A-Za-z0-9!=()., _/-]*"),
            "With `kubernetes`: a label selector for the pods that are the replicas.",
        ),
    ] = ""
    discovery_pool: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Text("the name of an InferencePool", r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?"),
            "With `kubernetes`: an InferencePool (`inference.networking.k8s.io/v1`), whose "
            "selector and target ports say which pods are the replicas. The pool's "
            "InferenceObjectives are priorities as `queue_objectives` are. See "
            "[picker.md](../operate/picker.md).",
        ),
    ] = ""
    discovery_namespaces: Annotated[
        tuple[str, ...],
        SettingInfo(
            DISCOVERY,
            Names(),
            "With `kubernetes`: the namespaces to look in; `*` for all. Empty: the router's own "
            "namespace.",
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
            "(`annotation:KEY`). Not needed where they have only one port.",
        ),
    ] = ""
    discovery_model: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Text("label:KEY or annotation:KEY", rf"((label|annotation):{_KEY_FORM})?"),
            "With `kubernetes`: the label or annotation that names the models of a replica. It is "
            "read from the pod, or with `discovery_services` as a label of the Service. Without "
            "it, the router asks the replica's `/v1/models`.",
        ),
    ] = ""
    discovery_scheme: Annotated[
        str,
        SettingInfo(
            DISCOVERY,
            Word(("http", "https")),
            "With `kubernetes`: the scheme of the replicas' URLs.",
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
            "With `file`: a YAML or JSON list of URLs, or of mappings with `url`, `models`, `role` "
            "and `id`. If the file is missing, empty or wrong, the replicas stay as they were.",
        ),
    ] = ""
    discovery_interval: Annotated[
        float,
        SettingInfo(DISCOVERY, duration(), "With `dns` and `file`: time between two look-ups."),
    ] = 5.0

    health_interval: Annotated[
        float, SettingInfo(HEALTH, duration(), "Time between two probes of a replica's `/health`.")
    ] = 1.0
    health_timeout: Annotated[
        float,
        SettingInfo(
            HEALTH,
            duration(),
            "A health probe that is not answered within this time has failed. SGLang gets a second "
            "more, which its probe takes.",
        ),
    ] = 2.0
    unhealthy_after: Annotated[
        int,
        SettingInfo(
            HEALTH, whole(1, 1000), "Failed probes in a row after which a replica gets no requests."
        ),
    ] = 2
    breaker_failures: Annotated[
        int,
        SettingInfo(
            HEALTH,
            whole(1, 1000),
            "Failed requests in a row after which a replica's circuit breaker opens.",
        ),
    ] = 3
    breaker_cooldown: Annotated[
        float,
        SettingInfo(
            HEALTH,
            duration(0),
            "Time after which an open circuit breaker lets one request try the replica again.",
        ),
    ] = 2.0
    slow_start: Annotated[
        float,
        SettingInfo(
            HEALTH,
            duration(0),
            "Time in which the share of a new or recovered replica grows to its full size.",
        ),
    ] = 10.0

    metrics_interval: Annotated[
        float,
        SettingInfo(ENGINE, duration(), "Time between two reads of a replica's `/metrics`."),
    ] = 1.0
    models_interval: Annotated[
        float,
        SettingInfo(ENGINE, duration(), "Time between two reads of a replica's `/v1/models`."),
    ] = 10.0
    kv_cache_tokens: Annotated[
        int,
        SettingInfo(
            ENGINE,
            _TOKENS,
            "Tokens that a replica's KV cache in GPU memory holds, for each data-parallel rank. "
            "0: read it from the engine's metrics.",
        ),
    ] = 0
    kv_offload_tokens: Annotated[
        int,
        SettingInfo(
            ENGINE,
            _TOKENS,
            "Tokens that a cache tier behind the GPU (CPU memory, disk, LMCache, Mooncake) holds. "
            "0: read it from the engine's metrics (`kv_offloading_size`). Of a store that the "
            "fleet shares: its size divided by the number of replicas.",
        ),
    ] = 0
    kv_tier_rates: Annotated[
        tuple[tuple[str, float], ...],
        SettingInfo(
            ENGINE,
            TierRates(),
            "Tokens a second that a replica loads from a medium behind the GPU, until it is "
            "learned. Empty: a token on CPU costs a tenth of computing it, on other media 0.4.",
        ),
    ] = ()
    kv_tier_shared: Annotated[
        tuple[str, ...],
        SettingInfo(
            ENGINE,
            Media(),
            "Media behind the GPU that every replica reaches, whichever stored the block: a store "
            "of LMCache or Mooncake, a file system. KV events that call a tier REMOTE tell it "
            "themselves. Where no events tell of it, `kv_offload_tokens` is needed too.",
        ),
    ] = ()
    kv_cache_guess: Annotated[
        int,
        SettingInfo(
            ENGINE,
            whole(1, 1_000_000_000),
            "Tokens to assume while the size of a replica's KV cache is not known. If in doubt, "
            "choose a high number.",
        ),
    ] = 2_000_000
    prefill_rate: Annotated[
        int,
        SettingInfo(
            ENGINE,
            _TOKENS,
            "Prompt tokens that one replica prefills in a second. 0: learn it from answers.",
        ),
    ] = 0

    state: Annotated[
        str,
        SettingInfo(
            STATE,
            StateUrl(),
            "URL of the Redis or Valkey through which routers share what they know. With "
            "Sentinel: `redis+sentinel://a:26379,b:26379/mymaster`; with a cluster any of its "
            "nodes: `redis://a:6379,b:6379`. Empty: this router shares nothing.",
        ),
    ] = ""
    state_password: Annotated[
        str,
        SettingInfo(
            STATE,
            Secret(),
            "Password for `state`. The user name, if any, belongs in the URL. No flag: "
            "environment or file only.",
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
            "Prefix of all keys in Redis. Routers with the same prefix share their state.",
        ),
    ] = "warmroute"
    workers: Annotated[
        int,
        SettingInfo(
            STATE,
            whole(1, 256),
            "Processes that serve the same port and share what they know. About one for each core.",
        ),
    ] = 1

    exact: Annotated[
        bool,
        SettingInfo(
            EXACT,
            Switch(),
            "Follow the engines' KV events and tokenise prompts as the engines do. Needs `pip "
            "install '.[exact]'` in the source folder and KV events on in the engines. Replicas "
            "and models for which it does not work are routed by the byte blocks.",
        ),
    ] = False
    exact_events: Annotated[
        str,
        SettingInfo(
            EXACT,
            Text(_ENDPOINT, _ENDPOINT_FORM),
            "Where to receive KV events, as a ZMQ endpoint in which `{host}` stands for the "
            "replica's host. Needed for engines that do not answer `GET /kv_event_sources`. "
            "Without `{host}`: an address to bind, for engines that connect.",
        ),
    ] = ""
    exact_replay: Annotated[
        str,
        SettingInfo(
            EXACT,
            Text(_ENDPOINT, _ENDPOINT_FORM),
            "Where to ask for lost KV events again, in the form of `exact_events`.",
        ),
    ] = ""
    exact_topic: Annotated[
        str,
        SettingInfo(
            EXACT, Text("a topic", r"\S*"), "The ZMQ topic of KV events. Empty: all topics."
        ),
    ] = ""
    exact_ranks: Annotated[
        int,
        SettingInfo(
            EXACT,
            whole(1, 1024),
            "Data-parallel ranks of a replica, with `exact_events`. Each rank has the port after "
            "the one before.",
        ),
    ] = 1
    exact_tokenizer: Annotated[
        str,
        SettingInfo(
            EXACT,
            Text("a folder, a hub name, or model=place,...", r"[^\x00]*"),
            "Where the tokenizers of the models are, as folders or hub names: one for all models, "
            "or `model=place` for some, separated by commas. Empty: where the engines say.",
        ),
    ] = ""
    exact_chat_template: Annotated[
        str,
        SettingInfo(
            EXACT,
            File(),
            "The chat template file that the engines get with `--chat-template`, if they get one.",
        ),
    ] = ""
    exact_download: Annotated[
        bool,
        SettingInfo(
            EXACT,
            Switch(),
            "Download tokenizers from the hub. Off: use only those on this machine.",
        ),
    ] = True
    exact_budget: Annotated[
        float,
        SettingInfo(
            EXACT,
            duration(),
            "Longest time to tokenise a prompt. A prompt that would take longer is routed by the "
            "byte blocks.",
        ),
    ] = 0.1
    exact_deadline: Annotated[
        float,
        SettingInfo(
            EXACT,
            duration(),
            "Time after which a prompt sent to a replica no longer counts as cached there, if the "
            "engine has sent no event for it.",
        ),
    ] = 60.0
    exact_memory: Annotated[
        int,
        SettingInfo(
            EXACT, size(1 * MIB, 64 * GIB), "Memory for the tokens of texts that were seen before."
        ),
    ] = 256 * MIB
    exact_max_body: Annotated[
        int,
        SettingInfo(
            EXACT,
            size(1 * KIB, 64 * MIB),
            "Largest body that is tokenised. Reading a larger one would delay other requests.",
        ),
    ] = 512 * KIB
    exact_threads: Annotated[
        int, SettingInfo(EXACT, whole(1, 64), "Threads that tokenise long prompts.")
    ] = 2

    @property
    def engines(self) -> tuple[str, ...]:
        """The URLs in `replicas`, then those that are only in `prefill`."""
        return self.replicas + tuple(url for url in self.prefill if url not in self.replicas)

    def role_of(self, url: str) -> Role:
        """What the engine at this URL is for, by `replicas` and `prefill`."""
        if url not in self.prefill:
            return "decode"
        return "both" if url in self.replicas else "prefill"
