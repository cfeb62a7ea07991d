"""Axis terms: what a reordering of the leaves does to an axis is the same before and after it is cut, split or unified.

Terms are drawn at random and refined at random, many of them sharing leaves, with sizes that make frozen cases common.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from onebasin.symmetry.axes import (
    Kind,
    Term,
    concat,
    factors,
    freeze,
    interleave,
    leaf,
    leaves,
    product,
    refactor,
    split_product,
    split_sum,
    summands,
    unify,
)

SEEDS = range(120)
Order = list[int]


def order(term: Term, orders: Mapping[int, Order]) -> Order:
    """Return the old position of every new position of `term` when its leaves are reordered by `orders`."""
    node = term.root()
    if node.kind is Kind.LEAF:
        return list(range(node.size)) if node.why else orders[id(node)]
    kids = [order(kid, orders) for kid in node.kids]
    return {Kind.SUM: joined, Kind.PRODUCT: grid, Kind.INTERLEAVE: in_turn}[node.kind](kids)


def joined(orders: list[Order]) -> Order:
    starts = [sum(map(len, orders[:number])) for number in range(len(orders))]
    return [start + old for start, part in zip(starts, orders, strict=True) for old in part]


def grid(orders: list[Order]) -> Order:
    total = [0]
    for part in orders:
        total = [row * len(part) + column for row in total for column in part]
    return total


def in_turn(orders: list[Order]) -> Order:
    turns = len(orders)
    return [turns * orders[place % turns][place // turns] + place % turns for place in range(sum(map(len, orders)))]


def draw_orders(terms: list[Term], drawn: random.Random) -> dict[int, Order]:
    found = {id(node): node.size for term in terms for node in leaves(term)}
    return {key: drawn.sample(range(size), size) for key, size in found.items()}


def draw_term(size: int, drawn: random.Random, pool: list[Term], depth: int = 0) -> Term:
    """Draw a term of `size`: a leaf (now and then one that is used elsewhere, or frozen), a sum or a product."""
    known = [term for term in pool if term.root().size == size]
    if known and drawn.random() < 0.3:
        return drawn.choice(known)
    half = (size + 1) // 2
    divisors = [number for number in range(2, size) if size % number == 0]
    kind = drawn.random()
    if depth < 3 and kind < 0.1 and size > 1:
        made = interleave([draw_term(n, drawn, pool, depth + 1) for n in (half, size - half)])
    elif depth < 3 and kind < 0.35 and divisors:
        first = drawn.choice(divisors)
        made = product([draw_term(n, drawn, pool, depth + 1) for n in (first, size // first)])
    elif depth < 3 and kind < 0.6 and size > 1:
        cut = drawn.randrange(1, size)
        made = concat([draw_term(n, drawn, pool, depth + 1) for n in (cut, size - cut)])
    else:
        made = leaf(size, "drawn frozen" if drawn.random() < 0.1 else None)
    pool.append(made)
    return made


def movable(terms: list[Term]) -> list[int]:
    return [id(node) for term in terms for node in leaves(term) if not node.why]


def draw_sizes(total: int, drawn: random.Random) -> list[int]:
    cuts = sorted(drawn.choices(range(total + 1), k=drawn.randrange(3)))
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_commutes_with_reordering(seed: int) -> None:
    drawn = random.Random(seed)
    term = draw_term(drawn.choice((6, 8, 12, 24)), drawn, [])
    sizes = draw_sizes(term.size, drawn)
    parts = split_sum(term, sizes)
    assert [part.root().size for part in parts] == sizes
    orders = draw_orders([term, *parts], drawn)
    assert order(term, orders) == joined([order(part, orders) for part in parts])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_grid_commutes_with_reordering(seed: int) -> None:
    drawn = random.Random(seed)
    term = draw_term(drawn.choice((6, 8, 12, 24)), drawn, [])
    outer = drawn.choice([number for number in range(1, term.size + 1) if term.size % number == 0])
    pair = split_product(term, outer, term.size // outer)
    assert [part.root().size for part in pair] == [outer, term.size // outer]
    orders = draw_orders([term, *pair], drawn)
    assert order(term, orders) == grid([order(part, orders) for part in pair])


@pytest.mark.parametrize("seed", SEEDS)
def test_refactoring_commutes_with_reordering(seed: int) -> None:
    drawn = random.Random(seed)
    pool: list[Term] = []
    terms = [draw_term(size, drawn, pool) for size in drawn.choice(((4, 6), (2, 3, 4), (12, 2), (8, 3)))]
    sizes = drawn.choice(((2, 12), (3, 8), (6, 4), (4, 2, 3), (24,)))
    found = refactor(terms, sizes)
    assert tuple(part.root().size for part in found) == sizes
    orders = draw_orders([*terms, *found], drawn)
    assert grid([order(t, orders) for t in terms]) == grid([order(t, orders) for t in found])


@pytest.mark.parametrize("seed", SEEDS)
def test_unified_axes_move_alike(seed: int) -> None:
    drawn = random.Random(seed)
    pool: list[Term] = []
    size = drawn.choice((6, 8, 12, 24))
    one, other = draw_term(size, drawn, pool), draw_term(size, drawn, pool)
    met = unify(one, other)
    assert met.size == size
    orders = draw_orders([one, other, met], drawn)
    assert order(one, orders) == order(other, orders) == order(met, orders)


@pytest.mark.parametrize("seed", SEEDS)
def test_unifying_twice_changes_nothing(seed: int) -> None:
    drawn = random.Random(seed)
    pool: list[Term] = []
    size = drawn.choice((6, 8, 12, 24))
    one, other = draw_term(size, drawn, pool), draw_term(size, drawn, pool)
    unify(one, other)
    orders = draw_orders([one, other], drawn)
    before = order(one, orders), order(other, orders), movable([one, other])
    unify(one, other)
    unify(other, one)
    assert (order(one, orders), order(other, orders), movable([one, other])) == before


@pytest.mark.parametrize("seed", SEEDS)
def test_many_refinements_leave_what_was_learnt_true(seed: int) -> None:
    """What a cut, a grid or a meeting has said of axes holds after any later refinement of other axes."""
    drawn = random.Random(seed)
    pool = [draw_term(12, drawn, []) for _ in range(3)] + [draw_term(24, drawn, [])]
    claims = []
    for _ in range(8):
        term = drawn.choice(pool).root()
        kind = drawn.choice(("cut", "grid", "meet"))
        if kind == "cut":
            parts = split_sum(term, draw_sizes(term.size, drawn))
            claims.append((joined, term, parts))
        elif kind == "grid":
            outer = drawn.choice([number for number in range(1, term.size + 1) if term.size % number == 0])
            parts = list(split_product(term, outer, term.size // outer))
            claims.append((grid, term, parts))
        else:
            parts = [drawn.choice([other for other in pool if other.root().size == term.size])]
            unify(term, parts[0])
            claims.append((grid, term, parts))
        pool += [part for part in parts if part.root().size > 1]
    orders = draw_orders(pool, drawn)
    for combine, term, parts in claims:
        assert order(term, orders) == combine([order(part, orders) for part in parts])


def test_a_claim_can_fail() -> None:
    drawn = random.Random(0)
    term, other = leaf(6), leaf(6)
    orders = draw_orders([term, other], drawn)
    assert order(term, orders) != order(other, orders)


def test_sizes_survive_flattening() -> None:
    inner = product([leaf(2), product([leaf(3), leaf(1), leaf(5)])])
    assert [term.size for term in factors(inner)] == [2, 3, 5]
    outer = concat([inner, leaf(0), concat([leaf(7), leaf(11)])])
    assert [term.size for term in summands(outer)] == [30, 7, 11]
    assert outer.size == 48


def test_a_frozen_leaf_freezes_what_it_meets_and_keeps_the_first_reason() -> None:
    one, other = product([leaf(2), leaf(3)]), leaf(6, "first")
    unify(one, other)
    assert [node.why for node in leaves(one)] == ["first", "first"]
    freeze(one, "second")
    assert [node.why for node in leaves(one)] == ["first", "first"]


def test_an_odd_cut_through_a_grid_keeps_what_it_can() -> None:
    """A cut at 4 of 2 x 3: the rows must stay, the columns fall apart into 1 + 2 and keep an order each."""
    row, column = leaf(2), leaf(3)
    parts = split_sum(product([row, column]), [4, 2])
    assert [part.root().size for part in parts] == [4, 2]
    assert row.root().why is not None
    assert [node.size for node in leaves(column)] == [1, 2]
    assert math.prod(node.size for node in leaves(column) if not node.why) == 2
