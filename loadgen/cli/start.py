"""What `warmroute-loadgen` shows when it is not told anything."""

START = """\
warmroute-loadgen answers what a way of routing does to latency, and what a fleet would take.

Without an engine, in virtual time, within seconds:
  is it worth it on my traffic?      warmroute-loadgen simulate --workload FILE
    FILE: ShareGPT, BurstGPT, Azure, Mooncake, vLLM, aiperf or guidellm traces, OpenAI batches,
    logs of LiteLLM, vLLM or this gateway, OpenTelemetry spans, agent trajectories, any csv or
    jsonl with --columns
  and without traffic of my own?     warmroute-loadgen simulate --workload agent --rate 20
  what fleet do I need?              warmroute-loadgen plan --workload FILE --slo ttft_p90=2s
  what if, on a log I have?          warmroute-loadgen whatif --workload LOG --other-replicas 3

Live:
  load on a URL                      warmroute-loadgen run --url http://HOST:8000 --workload FILE
  policies beside each other         warmroute-loadgen compare --replica URL --replica URL
  replicas to try things with        warmroute-loadgen replicas --count 4

Afterwards:
  two results, before and after      warmroute-loadgen diff before.json after.json
  a report to paste or to send       warmroute-loadgen report results.json --markdown pr.md

Every command has --help. docs/operate/loadgen.md explains all of it."""
