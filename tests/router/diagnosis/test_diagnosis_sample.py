from collections import Counter

from router.diagnosis.sample import Sample


def seconds_of(sample: Sample, count: int, rate: float, names: int, start: float) -> Counter[str]:
    """So many requests a second of so many conversations in turn: those that are taken, by name."""
    taken: Counter[str] = Counter()
    for number in range(count):
        name = f"conversation {number % names}" if names else ""
        if sample.takes(name, start + number / rate):
            taken[name] += 1
    return taken


def test_up_to_the_limit_every_request_is_taken() -> None:
    sample = Sample(most=100)
    taken = seconds_of(sample, 1000, 99.0, 50, 5.0)
    assert taken.total() == 1000
    assert not sample.left_out


def test_above_it_whole_conversations_are_taken_and_others_not_at_all() -> None:
    sample = Sample(most=100)
    seconds_of(sample, 1100, 1000.0, 500, 5.0)  # tells how many come
    taken = seconds_of(sample, 5000, 1000.0, 500, 6.1)
    assert all(count == 10 for count in taken.values())
    # A tenth of 500, by hashes that differ in each run of Python: six standard deviations.
    assert 10 <= len(taken) <= 90
    assert sample.left_out >= 4000


def test_of_requests_that_name_no_conversation_a_share_is_taken() -> None:
    sample = Sample(most=100)
    seconds_of(sample, 1100, 1000.0, 0, 5.0)
    assert 480 <= seconds_of(sample, 5000, 1000.0, 0, 6.1).total() <= 520


def test_when_fewer_come_again_all_are_taken_again() -> None:
    sample = Sample(most=100)
    seconds_of(sample, 2200, 1000.0, 500, 5.0)
    seconds_of(sample, 200, 90.0, 50, 8.0)
    before = sample.left_out
    assert seconds_of(sample, 200, 90.0, 50, 11.0).total() == 200
    assert sample.left_out == before


def test_of_a_burst_after_a_pause_no_more_are_taken_than_of_a_second() -> None:
    sample = Sample(most=100)
    seconds_of(sample, 50, 50.0, 50, 5.0)
    # The first 100, and of the others a tenth.
    assert 100 <= seconds_of(sample, 1000, 1000.0, 500, 20.0).total() <= 300
