"""Lengths alone: who is admitted, who computes what, who gives way."""

import itertools

import pytest

from refrag.engine.block_pool import BlockPool
from refrag.engine.scheduler import BACKGROUND_STEP_SLOTS, MAX_SKIPPED, Scheduler, Sequence

NUMBERS = itertools.count()


def make_scheduler(num_blocks=64, max_active=8, max_step_slots=32, max_whole_slots=0):
    return Scheduler(BlockPool(num_blocks, 4), max_active, max_step_slots, max_whole_slots)


def add(scheduler, num_slots, num_tokens=5, **options):
    sequence = Sequence(number=next(NUMBERS), num_slots=num_slots, max_slots=num_slots + num_tokens - 1, **options)
    scheduler.add(sequence)
    return sequence


def step(scheduler):
    """Schedule, compute and pick a token; return each sequence's count of slots in the step."""
    parts = scheduler.schedule()
    for part in parts:
        scheduler.complete(part)
        if part.completes:
            if part.sequence.num_slots == part.sequence.max_slots:
                scheduler.remove(part.sequence)
            else:
                part.sequence.num_slots += 1
    scheduler.check_integrity()
    return {part.sequence: part.stop - part.start for part in parts}


def test_prefill_and_decoding_share_a_step():
    scheduler = make_scheduler()
    first = add(scheduler, 10)
    assert step(scheduler) == {first: 10}
    second = add(scheduler, 40)
    assert step(scheduler) == {first: 1, second: 31}
    assert step(scheduler) == {first: 1, second: 9}
    assert step(scheduler) == {first: 1, second: 1}


def test_a_prompt_is_not_cut_where_nobody_would_wait_for_it():
    scheduler = make_scheduler(max_whole_slots=100)
    first = add(scheduler, 60)
    assert step(scheduler) == {first: 60}
    second = add(scheduler, 50)
    assert step(scheduler) == {first: 1, second: 31}


def test_of_prompts_that_come_together_the_short_one_goes_first():
    scheduler = make_scheduler(max_whole_slots=100)
    long, short = add(scheduler, 60), add(scheduler, 30)
    assert step(scheduler) == {short: 30}
    assert step(scheduler) == {short: 1, long: 31}


def test_a_prompt_too_long_for_one_step_is_cut_as_ever():
    scheduler = make_scheduler(max_whole_slots=100)
    long = add(scheduler, 101)
    assert [step(scheduler)[long] for _ in range(4)] == [32, 32, 32, 5]


def test_a_short_prompt_does_not_wait_for_a_long_one():
    scheduler = make_scheduler(num_blocks=256)
    long = add(scheduler, 500)
    step(scheduler)
    short = add(scheduler, 12)
    assert step(scheduler) == {short: 12}
    assert step(scheduler) == {short: 1, long: 31}


def test_a_long_prompt_is_not_starved_by_short_ones():
    scheduler = make_scheduler(num_blocks=256, max_active=50)
    long = add(scheduler, 100)
    counts = []
    for _ in range(2 * (MAX_SKIPPED + 1)):
        add(scheduler, 20, num_tokens=1)
        counts.append(step(scheduler).get(long, 0))
    assert counts == [0] * MAX_SKIPPED + [32] + [0] * MAX_SKIPPED + [32]


def test_of_several_long_prompts_none_is_starved():
    """Each prompt is too long for one step, and new ones keep coming."""
    scheduler = make_scheduler(num_blocks=1024, max_active=6)
    long = add(scheduler, 1000, num_tokens=1)
    others = [add(scheduler, 80, num_tokens=1) for _ in range(5)]
    num_steps = 0
    while long in scheduler.active or long in scheduler.waiting:
        step(scheduler)
        num_steps += 1
        assert num_steps < 300
        others = [one for one in others if one in scheduler.active or one in scheduler.waiting]
        others += [add(scheduler, 80, num_tokens=1) for _ in range(5 - len(others))]


def test_nobody_overtakes_the_first_in_the_queue():
    scheduler = make_scheduler(num_blocks=10)
    add(scheduler, 20)
    step(scheduler)
    large, small = add(scheduler, 30), add(scheduler, 3)
    step(scheduler)
    assert scheduler.waiting == [large, small]


def test_places_are_limited():
    scheduler = make_scheduler(max_active=2)
    for _ in range(3):
        add(scheduler, 4)
    step(scheduler)
    assert (len(scheduler.active), len(scheduler.waiting)) == (2, 1)


def test_the_more_urgent_goes_first():
    scheduler = make_scheduler(max_active=1)
    later, sooner = add(scheduler, 4, priority=1), add(scheduler, 4, priority=0)
    assert list(step(scheduler)) == [sooner]
    assert scheduler.waiting == [later]


@pytest.mark.parametrize("limits", [{"max_active": 2}, {"num_blocks": 16}])
def test_the_more_urgent_takes_the_place_of_the_least_urgent(limits):
    scheduler = make_scheduler(**limits)
    kept, given_up = add(scheduler, 25, priority=1), add(scheduler, 25, priority=2)
    for _ in range(3):
        step(scheduler)
    urgent = add(scheduler, 25, priority=0)
    step(scheduler)
    assert scheduler.active == [kept, urgent]
    assert (given_up.blocks, given_up.num_computed, scheduler.num_preempted) == ([], 0, 1)
    # Its two tokens are still there, and are computed again with the prompt.
    assert given_up.num_slots == 27


def test_equals_do_not_push_each_other_out():
    scheduler = make_scheduler(max_active=1)
    first, second = add(scheduler, 4), add(scheduler, 4)
    step(scheduler)
    assert (scheduler.active, scheduler.waiting) == ([first], [second])


def test_as_few_are_preempted_as_make_room():
    """Preempting the large request alone makes room, so the small ones keep their places."""
    scheduler = make_scheduler(num_blocks=20)
    large = add(scheduler, 56, priority=1)
    small = [add(scheduler, 4, num_tokens=1, priority=2) for _ in range(2)]
    scheduler.schedule()
    add(scheduler, 28, priority=0)
    scheduler.schedule()
    assert scheduler.waiting == [large]
    assert set(small) <= set(scheduler.active)


def test_nobody_is_preempted_in_vain():
    """Even without the small one of low priority there would be no room beside the large one."""
    scheduler = make_scheduler(num_blocks=20)
    add(scheduler, 50, priority=0), add(scheduler, 5, priority=2)
    step(scheduler)
    add(scheduler, 60, priority=1)
    step(scheduler)
    assert (len(scheduler.active), scheduler.num_preempted) == (2, 0)


def test_full_blocks_are_found_by_the_next_one():
    scheduler = make_scheduler()
    keys = [b"a", b"b", b"c"]
    add(scheduler, 14, keys=keys)
    step(scheduler)
    second = add(scheduler, 14, keys=keys)
    assert step(scheduler)[second] == 2
    assert scheduler.num_reused_slots == 12


def test_the_last_slot_is_always_computed():
    scheduler = make_scheduler()
    keys = [b"a", b"b"]
    add(scheduler, 8, keys=keys)
    step(scheduler)
    second = add(scheduler, 8, keys=keys)
    assert step(scheduler)[second] == 4


def test_blocks_half_computed_are_not_shared():
    scheduler = make_scheduler(max_step_slots=6)
    keys = [b"a", b"b"]
    add(scheduler, 9, keys=keys)
    step(scheduler)
    assert scheduler.pool.find(keys) == [0]


def test_the_background_is_computed_only_while_nobody_else_is_there_and_in_small_parts():
    scheduler = make_scheduler(max_step_slots=200, max_whole_slots=200)
    background = add(scheduler, 150, is_background=True)
    assert step(scheduler) == {background: BACKGROUND_STEP_SLOTS}
    caller = add(scheduler, 10, num_tokens=2)
    assert step(scheduler) == {caller: 10}
    assert step(scheduler) == {caller: 1}
    assert step(scheduler) == {background: BACKGROUND_STEP_SLOTS}


def test_the_background_gives_way_to_any_priority_and_never_takes_a_place():
    scheduler = make_scheduler(num_blocks=4, max_active=1)
    background = add(scheduler, 8, priority=-9, is_background=True)
    step(scheduler)
    caller = add(scheduler, 8, priority=9)
    assert step(scheduler) == {caller: 8}
    assert scheduler.waiting == [background] and scheduler.num_preempted == 1
