"""Workloads: the same for the same seed, in order, with the shares they promise."""

from __future__ import annotations

from itertools import islice

import pytest

from loadgen.workloads import NAMES, Role, Session, WorkloadError, make
from loadgen.workloads.types import Workload, tokens

MADE = [name for name in NAMES if ":" not in name]


def first(workload: Workload, count: int, seed: int = 3) -> list[Session]:
    return list(islice(workload.sessions(seed), count))


@pytest.mark.parametrize("name", [*MADE, "mix:agent=3,chat=1"])
def test_the_seed_decides_everything(name: str) -> None:
    workload = make(name)
    assert first(workload, 40) == first(workload, 40)
    assert first(workload, 40) != first(workload, 40, seed=4)


@pytest.mark.parametrize("name", [*MADE, "mix:agent=3,chat=1"])
def test_sessions_are_numbered_and_steps_wait_only_for_earlier_ones(name: str) -> None:
    for number, session in enumerate(first(make(name), 60)):
        assert session.number == number
        assert session.steps
        for place, step in enumerate(session.steps):
            assert all(0 <= before < place for before in step.after)
            assert (not step.after) == (place == 0)
            assert step.output.tokens > 0
            assert step.output.role is Role.ASSISTANT
            assert step.pause >= 0


@pytest.mark.parametrize("name", ["agent", "chat"])
def test_a_prompt_continues_what_it_waited_for(name: str) -> None:
    """Within a thread, the next prompt is the last one, its answer, and something new."""
    continued = 0
    for session in first(make(name), 60):
        last: dict[int, int] = {}
        for place, step in enumerate(session.steps):
            if step.thread in last:
                before = session.steps[last[step.thread]]
                history = (*before.prompt, before.output)
                assert step.prompt[: len(history)] == history
                assert len(step.prompt) > len(history)
                continued += 1
            last[step.thread] = place
    assert continued > 100


def test_agents_have_sub_agents_that_fork_or_start_fresh_and_are_waited_for() -> None:
    forked = fresh = 0
    for session in first(make("agent"), 300):
        for place, step in enumerate(session.steps):
            if step.thread and not any(
                other.thread == step.thread for other in session.steps[:place]
            ):
                (parent,) = step.after
                before = session.steps[parent]
                history = (*before.prompt, before.output)
                if step.prompt[: len(history)] == history:
                    forked += 1
                else:
                    fresh += 1
                last = max(
                    p for p, other in enumerate(session.steps) if other.thread == step.thread
                )
                awaited = any(last in other.after for other in session.steps)
                ends = max(p for p, other in enumerate(session.steps) if not other.thread)
                assert awaited or ends == parent
    assert forked > 10
    assert fresh > 10


def test_agents_share_tools_and_system_prompts_and_some_are_resumed() -> None:
    sessions = first(make("agent", {"resumed": "1", "sub_agents": "0"}), 100)
    heads = {
        tuple(part for part in s.steps[0].prompt if part.role in (Role.TOOLS, Role.SYSTEM))
        for s in sessions
    }
    assert 2 < len(heads) <= 16
    tasks = [sum(part.role is Role.USER for part in s.steps[-1].prompt) for s in sessions]
    assert min(tasks) == max(tasks) == 2


def test_the_ladder_is_the_published_one() -> None:
    sessions = first(make("ladder"), 1500)
    prompts = [session.steps[0].prompt for session in sessions]
    assert len({prompt[0].id for prompt in prompts}) == 150
    assert len({prompt[1].id for prompt in prompts}) == 750
    assert {tokens(prompt) for prompt in prompts} == {7200}
    assert {session.steps[0].output.tokens for session in sessions} == {1000}
    assert set(prompts[:750]) == set(prompts[750:])


def test_the_hot_prefix_has_its_share() -> None:
    prompts = [session.steps[0].prompt for session in first(make("hot"), 4000)]
    counts: dict[int, int] = {}
    for prompt in prompts:
        counts[prompt[0].id] = counts.get(prompt[0].id, 0) + 1
    shares = sorted(counts.values(), reverse=True)
    assert 0.57 < shares[0] / 4000 < 0.63
    assert shares[1] < 40


def test_a_burst_may_take_a_while_to_come() -> None:
    at_once = list(islice(make("burst").sessions(1), 40))
    spread = list(islice(make("burst", {"spread": "0.02"}).sessions(1), 40))
    assert {session.steps[0].pause for session in at_once} == {0.0}
    pauses = [session.steps[0].pause for session in spread]
    assert len(set(pauses)) == 40
    assert all(0.0 <= pause < 0.02 for pause in pauses)
    assert [s.steps[0].prompt for s in spread] == [s.steps[0].prompt for s in at_once]


def test_every_burst_has_a_prefix_of_its_own() -> None:
    workload = make("burst", {"size": "5"})
    sessions = first(workload, 20)
    assert workload.group == 5
    heads = [session.steps[0].prompt[0].id for session in sessions]
    assert [len(set(heads[start : start + 5])) for start in (0, 5, 10, 15)] == [1, 1, 1, 1]
    assert len(set(heads)) == 4


def test_a_mix_has_its_weights() -> None:
    sessions = first(make("mix:chat=3,unique=1"), 2000)
    unique = sum(len(s.steps) == 1 and s.steps[0].prompt[0].role is Role.USER for s in sessions)
    assert 0.20 < unique / 2000 < 0.30


def test_settings_change_a_workload() -> None:
    workload = make("mix:burst=1", {"burst.size": "2", "burst.prefix_tokens": "7"})
    assert first(workload, 1)[0].steps[0].prompt[0].tokens == 7


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("nothing", {}, "unknown workload 'nothing'"),
        ("agent:x", {}, "unknown workload 'agent:x'"),
        ("agent", {"stepz": "3"}, "no setting 'stepz'"),
        ("agent", {"steps": "many"}, "steps"),
        ("agent", {"steps": "-3"}, "agent: steps: Expected"),
        ("agent", {"tool_pause": "nan"}, "tool_pause"),
        ("agent", {"resumed": "1.5"}, "resumed"),
        ("shared-prefix", {"groups": "0"}, "groups"),
        ("hot", {"prefix_tokens": "-1"}, "prefix_tokens"),
        ("mooncake:/nowhere", {}, "no file '/nowhere'"),
        ("mix:", {}, "a mix needs parts"),
        ("mix:chat=-1", {}, "above 0"),
        ("mix:chat=nan", {}, "above 0"),
        ("mix:chat=x", {}, "chat=x"),
        ("mix:chat=1", {"rag.found": "2"}, "rag.found"),
    ],
)
def test_what_cannot_be_made_is_named(name: str, settings: dict[str, str], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        make(name, settings)
