"""Exchanges with a computed answer: sums, dates, counting."""

from __future__ import annotations

import random

from .exchange import Task, Turns, ask, listed
from .grammar import Writer

WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
YEAR = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


def sums(rng: random.Random, writer: Writer) -> Turns:
    """Adding, taking away, multiplying and sharing small numbers."""
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    kind = rng.choice(["plus", "plus", "minus", "times", "divided by"])
    if kind == "minus" and a < b:
        a, b = b, a
    if kind in ("times", "divided by"):
        a, b = rng.randint(1, 10), rng.randint(1, 10)
    if kind == "divided by":
        a, value = a * b, a
    else:
        value = {"plus": a + b, "minus": a - b, "times": a * b}[kind]
    sign = {"plus": "+", "minus": "-", "times": "x", "divided by": "/"}[kind]
    says = f"{a} {kind} {b}"
    questions = [
        f"What is {says}?",
        f"How much is {says}?",
        f"{a} {sign} {b} = ?",
        f"Can you calculate {says}?",
    ]
    return ask(
        writer,
        questions,
        [f"{says} is {value}.", f"{says} is {value}.", f"That is {value}.", f"It is {value}."],
    )


def story_sum(rng: random.Random, writer: Writer) -> Turns:
    """A small sum told as a story."""
    a, b = rng.randint(2, 12), rng.randint(1, 12)
    if rng.random() < 0.5:
        question = f"$Person1 has {a} $fruits1 and {{buys|gets|finds}} {b} more. How many are there{{ now|}}?"
        answer = f"$Person1 has {a + b} $fruits1, because {a} plus {b} is {a + b}."
    else:
        a += b
        question = f"$Person1 has {a} $fruits1 and {{eats|gives away|sells}} {b}. How many are left?"
        answer = f"There are {a - b} $fruits1 left, because {a} minus {b} is {a - b}."
    return ask(writer, [question], [answer])


def change(rng: random.Random, writer: Writer) -> Turns:
    """Paying and getting money back."""
    price = rng.randint(1, 19)
    paid = rng.choice([note for note in (5, 10, 20) if note >= price])
    question = (
        f"A(n) $thing1 costs {price} {{euros|coins|dollars}} and I pay with {paid}. How much do I get back?"
    )
    return ask(
        writer, [question], [f"You get {paid - price} back.", f"{paid} minus {price} is {paid - price}."]
    )


def compare(rng: random.Random, writer: Writer) -> Turns:
    """Which number is larger."""
    a, b = rng.sample(range(1, 100), 2)
    big, small = max(a, b), min(a, b)
    if rng.random() < 0.5:
        return ask(
            writer,
            [f"Which is {{larger|bigger}}, {a} or {b}?", f"Is {a} more than {b}?"],
            [f"{big} is larger than {small}."],
        )
    return ask(writer, [f"Which {{number |}}is smaller, {a} or {b}?"], [f"{small} is smaller than {big}."])


def neighbours(rng: random.Random, writer: Writer) -> Turns:
    """The number, day or month before or after."""
    kind = rng.choice(["number", "day", "month"])
    step, word = rng.choice([(1, "after"), (-1, "before")])
    if kind == "number":
        start = rng.randint(1, 98)
        return ask(
            writer, [f"What number comes {word} {start}?"], [f"The number {word} {start} is {start + step}."]
        )
    names = WEEK if kind == "day" else YEAR
    start = rng.randrange(len(names))
    other = names[(start + step) % len(names)]
    questions = [f"What {kind} comes {word} {names[start]}?", f"Which {kind} is {word} {names[start]}?"]
    if kind == "day":
        turn = "tomorrow" if step == 1 else "yesterday"
        questions.append(f"Today is {names[start]}. What day {'is' if step == 1 else 'was'} {turn}?")
    return ask(writer, questions, [f"{other} comes {word} {names[start]}.", f"It is {other}."])


def calendar(rng: random.Random, writer: Writer) -> Turns:
    """Days of a month, months of a season, days of the week."""
    month = rng.randrange(12)
    if rng.random() < 0.5:
        extra = " In a leap year it has 29." if month == 1 else ""
        return ask(
            writer,
            [f"How many days does {YEAR[month]} have?", f"How long is {YEAR[month]}?"],
            [f"{YEAR[month]} has {DAYS[month]} days.{extra}"],
        )
    return rng.choice(
        [
            ask(writer, ["How many days are in a week?"], [f"A week has seven days: {listed(WEEK)}."]),
            ask(
                writer,
                ["How many months are in a year?", "Name the months."],
                [f"The months are {listed(YEAR)}."],
            ),
            ask(
                writer,
                [f"Which month of the year is {YEAR[month]}?"],
                [f"{YEAR[month]} is month number {month + 1}."],
            ),
            ask(writer, ["How many hours does a day have?"], ["A day has twenty-four hours."]),
            ask(writer, ["How many minutes {are in|does} an hour{| have}?"], ["An hour has sixty minutes."]),
            ask(
                writer, ["Name the {four |}seasons."], ["The seasons are spring, summer, autumn and winter."]
            ),
        ]
    )


def counting(rng: random.Random, writer: Writer) -> Turns:
    """Counting up or down."""
    low = rng.randint(1, 20)
    high = low + rng.randint(3, 8)
    numbers = [str(n) for n in range(low, high + 1)]
    if rng.random() < 0.3:
        low, high, numbers = high, low, numbers[::-1]
    return ask(
        writer,
        [f"Count from {low} to {high}.", f"Please count from {low} to {high}."],
        [", ".join(numbers) + "."],
    )


def number_words(rng: random.Random, writer: Writer) -> Turns:
    """Numbers written as words."""
    n = rng.randrange(len(WORDS))
    if rng.random() < 0.5:
        return ask(
            writer,
            [f"Write {n} as a word.", f"How do you write the number {n}?"],
            [f'{n} is written "{WORDS[n]}".'],
        )
    return ask(writer, [f"What number is {WORDS[n]}?"], [f"{WORDS[n].capitalize()} is {n}."])


NUMBER_TASKS: list[Task] = [
    sums,
    sums,
    sums,
    story_sum,
    change,
    compare,
    neighbours,
    calendar,
    counting,
    number_words,
]
