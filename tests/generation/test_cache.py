"""Pages of the cache: shared where beginnings are known, never written by two, all given back."""

import random

import pytest
import torch

from fastgen.generation import PagedCache
from fastgen.generation.cache import MIN_COPIED
from fastgen.models import Transformer
from fastgen.ops.transformer import PAGE


def cache_of(pages):
    torch.manual_seed(0)
    model = Transformer(11, layers=1, heads=1, hidden=8, context=1024)
    return PagedCache(model.weights(1024), pages)


def begin(cache, tokens, positions=None):
    """A sequence whose prompt is computed: every position holds its token."""
    pages = cache.begin(tokens, positions or len(tokens))
    if pages is not None:
        compute(cache, pages, tokens)
    return pages


def compute(cache, pages, tokens):
    for position in range(pages.computed, len(tokens)):
        page, place = divmod(position, PAGE)
        cache.keys[:, pages.numbers[page], :, place] = tokens[position]
    pages.computed = len(tokens)
    cache.publish(pages, tokens)


def held(cache, pages, count):
    return [float(cache.keys[0, pages.numbers[p // PAGE], 0, p % PAGE, 0]) for p in range(count)]


def text(length, seed=0):
    return random.Random(seed).choices(range(1, 11), k=length)


def test_whole_pages_of_a_known_beginning_are_shared():
    cache = cache_of(20)
    first = text(3 * PAGE + 5)
    a = begin(cache, first)
    b = cache.begin(first[: 2 * PAGE + 3] + [1] * 100, 3 * PAGE)
    assert b.numbers[:2] == a.numbers[:2] and b.numbers[2] not in a.numbers
    assert b.computed == 2 * PAGE  # three positions in common are computed rather than copied


def test_the_last_token_is_always_computed():
    cache = cache_of(20)
    first = text(2 * PAGE)
    a = begin(cache, first)
    b = cache.begin(first, 3 * PAGE)
    assert b.computed == 2 * PAGE - 1 and b.numbers[0] == a.numbers[0] and b.numbers[1] != a.numbers[1]
    assert held(cache, b, b.computed) == first[:-1]


def test_positions_in_common_inside_a_page_are_copied():
    cache = cache_of(20)
    first = text(PAGE + 30)
    a = begin(cache, first)
    other = [*first[: PAGE + 20], *([0] * 30)]
    b = cache.begin(other, len(other))
    assert b.computed == PAGE + 20
    compute(cache, b, other)
    assert held(cache, b, len(other)) == other and held(cache, a, len(first)) == first
    short = cache.begin([*first[: PAGE + MIN_COPIED - 1], 0, 0], PAGE + 30)
    assert short.computed == PAGE


def test_no_page_is_written_by_one_and_read_by_another():
    """A history of sequences that come, share, go on and leave; each always finds what it wrote."""
    cache, rng = cache_of(24), random.Random(3)
    stems = [text(3 * PAGE, seed) for seed in range(3)]
    running = []
    shared = 0
    for _ in range(400):
        if running and (rng.random() < 0.4 or len(running) > 4):
            pages, tokens = running.pop(rng.randrange(len(running)))
            assert held(cache, pages, len(tokens)) == tokens
            cache.release(pages)
            continue
        prompt = rng.choice(stems)[: rng.randint(1, 3 * PAGE)] + text(rng.randint(1, 20), rng.random())
        pages = cache.begin(prompt, len(prompt) + 30)
        if pages is None:
            continue
        shared += pages.computed
        compute(cache, pages, prompt)
        tokens = prompt + text(rng.randint(0, 30), rng.random())
        for position in range(len(prompt), len(tokens)):
            cache.keys[:, pages.numbers[position // PAGE], :, position % PAGE] = tokens[position]
        running.append((pages, tokens))
        for others, theirs in running:
            assert held(cache, others, len(theirs)) == theirs
    assert shared > 5000
    for pages, _ in running:
        cache.release(pages)
    assert cache.free == 24


def test_a_fork_shares_what_is_computed_and_parts_afterwards():
    cache = cache_of(10)
    tokens = text(PAGE + 10)
    a = begin(cache, tokens, 2 * PAGE)
    b = cache.fork(a, 3 * PAGE)
    assert b.numbers[0] == a.numbers[0] and b.computed == a.computed
    for pages, token in ((a, 3.0), (b, 7.0)):
        cache.keys[:, pages.numbers[1], :, 10] = token
    assert held(cache, a, PAGE + 11) == [*tokens, 3] and held(cache, b, PAGE + 11) == [*tokens, 7]
    cache.release(a)
    assert held(cache, b, PAGE + 11) == [*tokens, 7]
    cache.release(b)
    assert cache.free == 10


def test_too_few_pages_are_none_and_change_nothing():
    cache = cache_of(3)
    a = begin(cache, text(2 * PAGE))
    assert cache.begin(text(2 * PAGE, seed=1), 2 * PAGE) is None and cache.free == 1
    assert cache.fork(a, 5 * PAGE) is None and cache.free == 1
    cache.release(a)
    assert cache.free == 3
    # Of three free pages two are those it shares.
    assert cache.begin([*text(2 * PAGE), 1], 4 * PAGE) is None and cache.free == 3


def test_what_is_known_is_forgotten_only_when_its_memory_is_needed():
    cache = cache_of(4)
    first = text(2 * PAGE + 1)
    cache.release(begin(cache, first))
    assert cache.known(first) == 2 * PAGE
    cache.release(begin(cache, text(PAGE, seed=5)))  # the page that was never used
    assert cache.known(first) == 2 * PAGE
    cache.release(begin(cache, text(3 * PAGE, seed=6)))
    assert cache.known(first) < 2 * PAGE


def test_a_page_that_is_copied_from_may_be_the_only_one_left():
    cache = cache_of(1)
    first = text(40)
    cache.release(begin(cache, first))
    other = [*first[:30], 0, 0]
    pages = cache.begin(other, 50)
    assert pages.computed == 30 and cache.known(first) == 0
    compute(cache, pages, other)
    assert held(cache, pages, 32) == other
    cache.release(pages)
    assert cache.known(first) == 30  # no longer what it held before


@pytest.mark.parametrize("length", [1, PAGE, PAGE + 1])
def test_unlike_beginnings_share_nothing(length):
    cache = cache_of(8)
    begin(cache, text(2 * PAGE))
    b = cache.begin([0, *text(length)], 2 * PAGE)
    assert b.computed == 0


def test_the_next_cache_gets_the_memory_of_a_closed_one_and_none_of_its_numbers():
    torch.manual_seed(0)
    model = Transformer(11, layers=2, heads=2, hidden=16, context=256)
    prompts = [text(5), text(PAGE + 3, seed=1)]
    expected = model.generate(prompts, max_new_tokens=20, seed=3)
    cache = PagedCache(model.weights(256), 8)
    memory = cache.keys.data_ptr()
    for numbers in (cache.keys, cache.values):
        numbers.fill_(torch.nan)
    cache.close()
    assert model.generate(prompts, max_new_tokens=20, seed=3) == expected
    after = PagedCache(model.weights(256), 8)
    assert after.keys.data_ptr() == memory and bool(after.keys.isnan().any())
    assert PagedCache(model.weights(256), 8).keys.data_ptr() != memory  # it is taken


def test_a_cache_above_the_limit_leaves_nothing(monkeypatch):
    monkeypatch.setattr("fastgen.generation.cache._MOST_KEPT", 8 * PAGE * 8 * 4 * 2)
    for pages, kept in ((8, True), (9, False)):
        cache = cache_of(pages)
        cache.keys.fill_(7)
        cache.close()
        assert bool((cache_of(pages).keys == 7).all()) is kept
