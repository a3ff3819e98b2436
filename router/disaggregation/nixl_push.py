"""vLLM's NixlPushConnector, where the prefill engine writes the blocks into the decode engine.

The fields are those of the pull mode, less what the decode engine does not need
(nixl/push_scheduler.py in vllm-project/vllm). The decode engine registers the blocks that it has
set aside with the prefill engine, which matches that to one of its requests by the request's id
less the random end that vLLM gives it (push_worker.py): hence one id for both legs, and never a
client's own.

A registration may come before the prefill is done. The legs run one after the other all the same,
since the decode engine is told in which engine to register, and only the prefill engine's answer
says so.
"""

from __future__ import annotations

from router.disaggregation.nixl import Nixl


class NixlPush(Nixl):
    """A `Connector`."""

    names_legs = True
