"""Word problems of our own making: a few sums about everyday things, drawn from a seed.

Lives here: the stories. Every answer is a whole number above zero, found in two to four steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Problem = tuple[str, int]
"""(question, answer)."""

_NAMES = "Ada Ben Carla David Elif Femi Greta Hugo Ines Jonas Kofi Lena Mateo Nora Omar".split()
_THINGS = "pencils marbles stickers buttons cards beads shells postcards".split()
_FRUITS = "apples pears plums lemons peaches oranges".split()


def word_problem(seed: int) -> Problem:
    """Return the problem of `seed`."""
    rng = random.Random(seed)
    return rng.choice(_STORIES)(rng)


def _change(rng: random.Random) -> Problem:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    each, price, extra = rng.randint(3, 12), rng.randint(2, 9), rng.randint(2, 15)
    paid = (each * price + extra) // 10 * 10 + 10 * rng.randint(1, 4)
    question = (
        f"{name} buys {each} packs of {thing} at {price} dollars a pack and a bag for {extra} "
        f"dollars, and pays with {paid} dollars. How many dollars of change does {name} get?"
    )
    return question, paid - each * price - extra


def _boxes(rng: random.Random) -> Problem:
    thing = rng.choice(_THINGS)
    size, bags, boxes = rng.randint(4, 9), rng.randint(8, 20), rng.randint(5, 9)
    each = -(-size * bags // boxes) + rng.randint(0, 4)
    lost = boxes * each - size * bags
    question = (
        f"A shop gets {boxes} boxes with {each} {thing} in each. {lost} of the {thing} are broken "
        f"and thrown away. The others are put into bags of {size}. How many bags are filled?"
    )
    return question, bags


def _savings(rng: random.Random) -> Problem:
    name, other = rng.sample(_NAMES, 2)
    weekly, weeks = rng.randint(5, 25), rng.randint(4, 12)
    spent, times = rng.randint(5, weekly * weeks - 5), rng.randint(2, 4)
    question = (
        f"{name} saves {weekly} dollars a week for {weeks} weeks and then spends {spent} dollars. "
        f"{other} has {times} times as much as {name} has left. How many dollars do they have "
        "together?"
    )
    return question, (weekly * weeks - spent) * (times + 1)


def _journey(rng: random.Random) -> Problem:
    slow, fast = rng.randrange(40, 80, 5), rng.randrange(80, 130, 5)
    first, second, left = rng.randint(2, 5), rng.randint(2, 4), rng.randint(10, 90)
    way = slow * first + fast * second + left
    question = (
        f"A train has {way} kilometres to go. It travels for {first} hours at {slow} kilometres an "
        f"hour and then for {second} hours at {fast} kilometres an hour. How many kilometres are "
        "left?"
    )
    return question, left


def _harvest(rng: random.Random) -> Problem:
    name, fruit = rng.choice(_NAMES), rng.choice(_FRUITS)
    friends, share, times = rng.randint(3, 8), rng.randint(4, 12), rng.randint(2, 3)
    eaten = (-friends * share) % (times + 1)
    monday = (friends * share + eaten) // (times + 1)
    kept = f"eats {eaten} of them and " if eaten else ""
    question = (
        f"{name} picks {monday} {fruit} on Monday and {times} times as many on Tuesday. {name} "
        f"{kept}shares the {'rest' if eaten else fruit} equally among {friends} friends. How many "
        f"{fruit} does each friend get?"
    )
    return question, share


def _sale(rng: random.Random) -> Problem:
    name, thing = rng.choice(_NAMES), rng.choice(("lamp", "chair", "kettle", "backpack", "blanket"))
    price, percent = rng.randrange(20, 200, 20), rng.choice((5, 10, 15, 20, 25, 30, 40, 50))
    count = rng.randint(2, 6)
    question = (
        f"A {thing} costs {price} dollars. In a sale the price is {percent} percent lower. How "
        f"many dollars does {name} pay for {count} {thing}s in the sale?"
    )
    return question, count * (price - price * percent // 100)


def _ages(rng: random.Random) -> Problem:
    name, other = rng.sample(_NAMES, 2)
    young, older, years = rng.randint(3, 30), rng.randint(2, 15), rng.randint(2, 10)
    question = (
        f"{name} is {older} years older than {other}. In {years} years their ages will add up to "
        f"{2 * young + older + 2 * years}. How old is {other} now?"
    )
    return question, young


def _recipe(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    people, guests, each = rng.randint(2, 6), rng.randint(7, 15), rng.randrange(20, 90, 5)
    stock = rng.randrange(50, each * guests, 10)
    question = (
        f"A recipe for {people} people needs {people * each} grams of flour. {name} cooks it for "
        f"{guests} people and has {stock} grams of flour at home. How many grams are missing?"
    )
    return question, each * guests - stock


_STORIES: tuple[Callable[[random.Random], Problem], ...] = (
    _change,
    _boxes,
    _savings,
    _journey,
    _harvest,
    _sale,
    _ages,
    _recipe,
)
