"""docs/reference/metrics.md, made from the catalogue.

``python -m router.telemetry.metrics_page`` prints it.
"""

from __future__ import annotations

from router.telemetry.catalogue import OWN, PROCESS
from router.telemetry.ledger import GAPS
from router.telemetry.record import APIS, OUTCOMES

_INTRODUCTION = f"""# Metrics

This page answers: what does each metric mean, and each of its labels?

`GET /metrics` on the admin port answers in the Prometheus text format. `make docs` writes this
page.

## Words

Reuse has four levels, in tokens of the engine. Each is at most as large as the one before:

- **available**: leading prompt tokens that the best eligible replica held, according to the index.
- **chosen**: leading prompt tokens that the chosen replica held, according to the index.
- **predicted**: chosen, rounded down to what an engine can deliver. An engine reuses whole blocks,
  and it always computes a prompt's last token.
- **delivered**: what the engine reported as `cached_tokens`.

The reuse ledger counts the requests whose engine reported both prompt tokens and cached tokens
(vLLM: `--enable-prompt-tokens-details`). What is missing there shows up in
`warmroute_reuse_unreported_prompt_tokens_total`. For each request, and so for all sums:

    prompt = delivered + no_holder + load_shed + rounding
             + rendered_differently + stale_index + eviction - surplus

| gap | tokens | what it tells |
|---|---|---|
| `no_holder` | prompt - available | no replica held these tokens: new text, or evicted everywhere |
| `load_shed` | available - chosen | another replica held more, but was too busy |
| `rounding` | chosen - predicted | held, but engines reuse whole blocks only |
| `rendered_differently` | predicted - delivered | the chat template put something elsewhere |
| `stale_index` | predicted - delivered | the index predicted tokens that the cache did not have |
| `eviction` | predicted - delivered | the same, while the index believed the cache (nearly) full |
| `surplus` | delivered - predicted | the cache had tokens that the index did not predict |

A loss is `rendered_differently` where the router does not know the model's chat template
([prompt.md](../design/prompt.md)), and the prompt has something that templates put in another
place or leave out: template arguments, inline system messages, earlier reasoning, tools. What was
delivered ends near that place.

A replica's hit rate over five minutes, as a share of prompt tokens:

    sum by (replica) (rate(warmroute_reuse_delivered_tokens_total[5m]))
      / sum by (replica) (rate(warmroute_reuse_prompt_tokens_total[5m]))

## Labels

The number of values of each label is bounded, whatever clients send.

- `replica`: the replica's name; `none` for requests that were sent to no replica. The series of a
  replica that left the fleet are dropped 15 minutes later.
- `model`: a name for which a replica has answered with 2xx, at most 100 of them, and every name in
  `expected_models`. Names that clients ask for and no replica serves are labels too: at most 100
  at a time, of up to 256 printable characters, each until nobody has asked for it for 15 minutes.
  Every other name is `other`; requests that name no model have `none`. An autoscaler can wake a
  model that has no replica by
  `sum(increase(warmroute_requests_total{{model="NAME",code="503"}}[2m]))`.
- `api`: {", ".join(f"`{word}`" for word in sorted(APIS))}.
- `code`: the HTTP status; `0` when no answer was sent.
- `reason` of errors: {", ".join(f"`{word}`" for word in sorted(OUTCOMES))}.
- `reason` of decisions: the policy's words, at most 100 pairs of policy and reason, then `other`.
- `result`: `exact`, or why not: `model` (not served or not loaded), `replicas` (none is exact),
  `large`, `budget`, `media`, `argument`, `several`, `shape`, `template`, `api`, `fault`.
- `policy` of shadows: the names in `shadow_policies`, and the policy in use.
- `tenant`: the 100 tenants that use most; the rest together is `other`.
- `limit`: a limit's name ([tenants.md](../operate/tenants.md)), `model`, `path`,
  `max_prompt_tokens`, `max_output_tokens`, `isolation` or `without_redis`.
- `reason` of diagnoses: see [why did my cache miss](../operate/why-did-my-cache-miss.md).
- `reason` of reuse that sessions lost: `evicted`, `waited`, `moved` or `replica_lost`.
- `where`: `door` or `lane`; `outcome`: the words in the table.
- `step`: `1` to `9`, and `10` for all that follow.
- `seen`: `new` or `repeated`; `cache`: `kept` or `gone`.
- `looks_like`: `uuid`, `time stamp`, `nonce`, `counter` or `reordered tools`.
- `gap`: {", ".join(f"`{word}`" for word in GAPS)}.

## All metrics

| name | type | labels | unit | meaning |
|---|---|---|---|---|
"""


def document() -> str:
    """The text of docs/reference/metrics.md."""
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels) or '-'} "
        f"| {m.unit} | {m.help} |\n"
        for m in (*OWN, *PROCESS)
    ]
    return _INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    print(document(), end="")
