"""Exchanges about words and texts: spelling, sorting, rewriting, reading, records, simple code."""

from __future__ import annotations

import json
import random

from .exchange import Task, Turns, ask, listed
from .grammar import Writer

_START_SYLLABLES = (
    "ka lo mi tar ven sol bri el mar no ri do fa gal hel is jor pe qua ru sa ti ul vi wen za ost bel"
)
_END_SYLLABLES = (
    "na ra vo mir den burg ta lia nia ria sk ton dal wick stad ova ello ino ez ar os ia um ey heim"
)
_STARTS, _ENDS = _START_SYLLABLES.split(), _END_SYLLABLES.split()


def spelling(rng: random.Random, writer: Writer) -> Turns:
    """Spelling, first letters, lengths of words."""
    word = writer.write(rng.choice(["$thing1", "$fruit1", "$animal1", "$flower1", "$instrument1"]))
    return rng.choice(
        [
            ask(
                writer,
                [f'How do you spell "{word}"?', f"Spell the word {word}."],
                ["-".join(word.upper()) + "."],
            ),
            ask(
                writer,
                [f'What is the first letter of "{word}"?'],
                [f'The first letter of "{word}" is {word[0].upper()}.'],
            ),
            ask(writer, [f'How many letters does "{word}" have?'], [f'"{word}" has {len(word)} letters.']),
            ask(writer, [f'Repeat the word "{word}".', f'Say "{word}".'], [f"{word.capitalize()}."]),
        ]
    )


def topics(rng: random.Random, writer: Writer) -> Turns:
    """Words that belong to a topic."""
    words = [writer.write(f"$topic{i}.words").split(", ") for i in (1, 2)]
    some, strange = rng.sample(words[0], rng.randint(3, 6)), rng.choice(words[1])
    word = rng.choice(words[0] + words[1])
    options = [
        ask(
            writer,
            ["Tell me some words about $topic1.", "Which words belong to $topic1?"],
            [f"{listed(some)}."],
        ),
        ask(writer, [f"What is the topic: {', '.join(some)}?"], ["The words are about $topic1."]),
        ask(writer, [f"Repeat these words: {', '.join(some)}."], [f"{', '.join(some)}."]),
        ask(writer, [f'What are "{some[0]}" and "{some[1]}" about?'], ["Both words belong to $topic1."]),
        ask(writer, [f'How do you spell "{word}"?', f"Spell {word}."], ["-".join(word.upper()) + "."]),
        ask(writer, [f'Is "{some[0]}" a word about $topic1?'], [f'Yes, "{some[0]}" belongs to $topic1.']),
    ]
    if strange not in words[0]:
        odd = rng.sample([*some, strange], len(some) + 1)
        questions = [f"Which word is not about $topic1: {', '.join(odd)}?"]
        options.append(ask(writer, questions, [f'The word "{strange}" belongs to $topic2.']))
    return rng.choice(options)


def ordering(rng: random.Random, writer: Writer) -> Turns:
    """Sorting and joining lists."""
    names = [writer.write(f"$fruit{i}") for i in range(rng.randint(3, 4))]
    numbers = [str(n) for n in sorted(rng.sample(range(1, 60), rng.randint(3, 5)))]
    mixed = rng.sample(numbers, len(numbers))
    steps = "\n".join(f"{i}. {name}" for i, name in enumerate(names, 1))
    return rng.choice(
        [
            ask(
                writer,
                [f"Sort these words: {', '.join(names)}."],
                [f"In order, they are {listed(sorted(names))}."],
            ),
            ask(writer, [f"Sort these numbers: {', '.join(mixed)}."], [f"{', '.join(numbers)}."]),
            ask(writer, [f"Make a list of {listed(names)}.", f"Write {listed(names)} as a list."], [steps]),
            ask(
                writer,
                [f"Put {', '.join(names)} in one sentence."],
                [f"I bought {listed(['a(n) ' + n for n in names])}."],
            ),
        ]
    )


def rewriting(rng: random.Random, writer: Writer) -> Turns:
    """Another form of a given sentence."""
    who, other = writer.write("$person1"), writer.write("$person2")
    base, third, past, ing = (writer.write(f"$act1.{form}") for form in ("base", "third", "past", "ing"))
    simple = f"{who} {third}."
    name, value = rng.choice(
        [
            ("in the past", f"{who} {past}."),
            ("in the future", f"{who} will {base}."),
            ("as a question", f"Does {who} {base}?"),
            ("in the negative", f"{who} does not {base}."),
            ("with the word now", f"{who} is {ing} now."),
            (f"with {other} instead of {who}", f"{other} {third}."),
            ("with the word yesterday", f"Yesterday, {who} {past}."),
            ("as a wish", f"{who} would like to {base}."),
        ]
    )
    if rng.random() < 0.2:
        polite = f"Could you please {base}?"
        return ask(
            writer,
            [f"Make this polite: {base.capitalize()}!", f'Say "{base.capitalize()}!" politely.'],
            [polite],
        )
    return ask(writer, [f"Write this {name}: {simple}", f"Put this {name}: {simple}"], [value])


def reading(rng: random.Random, writer: Writer) -> Turns:
    """A question about a short text that is given."""
    text = writer.write(
        "$person1 went to $place1 on $weekday1 with $person1.his $relative1 and bought a(n) $color1 $clothes1"
    )
    asked, said = rng.choice(
        [
            ("Where did $person1 go?", "$Person1 went to $place1."),
            ("When did $person1 go to $place1?", "$Person1 went there on $weekday1."),
            ("Who was with $person1?", "$Person1.his $relative1 was with $person1.him."),
            ("What did $person1 buy?", "$Person1 bought a(n) $color1 $clothes1."),
            ("What colour was the $clothes1?", "The $clothes1 was $color1."),
        ]
    )
    return ask(writer, [f"{text}. {asked}", f"Read this: {text}. {asked}"], [said])


def records(rng: random.Random, writer: Writer) -> Turns:
    """A little JSON."""
    name, job, town, age = (
        writer.write("$person1"),
        writer.write("$job1"),
        writer.write("$town1"),
        rng.randint(18, 80),
    )
    row = json.dumps({"name": name, "age": age, "job": job, "town": town})
    said = f"{name} is {age} years old, works as a(n) {job} and lives in {town}."
    if rng.random() < 0.5:
        return [("U", f"Write this as JSON: {writer.write(said)}"), ("A", row)]
    return [("U", f"What does this JSON say? {row}"), ("A", writer.write(said))]


def code(rng: random.Random, writer: Writer) -> Turns:
    """A very small Python program."""
    n, word, verb = (
        rng.randint(2, 12),
        writer.write("$thing1"),
        rng.choice(["add", "multiply", "double", "greet", "count"]),
    )
    programs = {
        "add": ("adds two numbers", f"def add(a, b):\n    return a + b\n\nprint(add({n}, {n + 1}))"),
        "multiply": (f"multiplies a number by {n}", f"def multiply(x):\n    return x * {n}"),
        "double": (
            "doubles every number in a list",
            "def double(numbers):\n    return [2 * x for x in numbers]",
        ),
        "greet": (f'prints "{word}" {n} times', f'for i in range({n}):\n    print("{word}")'),
        "count": (f"counts from 1 to {n}", f"for i in range(1, {n + 1}):\n    print(i)"),
    }
    does, program = programs[verb]
    return [("U", f"Write a Python program that {does}."), ("A", program)]


def strange_name(rng: random.Random) -> str:
    """A name that nobody has heard."""
    return (rng.choice(_STARTS) + rng.choice([*_STARTS, ""]) + rng.choice(_ENDS)).capitalize()


def strangers(rng: random.Random, writer: Writer) -> Turns:
    """Names that the model has never seen, to be taken over letter by letter."""
    name = strange_name(rng)
    visit = [
        f"What {{should|can}} I {{see|do|visit|eat|buy}} in {name}?",
        f"Tell me about {name}.",
        f"Where is {name}?",
        f"What is {name} like in $season1?",
        f"How do I get around in {name}?",
    ]
    unknown = [
        f"I do not know much about {name}.",
        f"I am sorry, I do not know {{a place called |}}{name}.",
        f"I have never heard of {name}. {{Is it a town?|Where is it?}}",
    ]
    if rng.random() < 0.6:
        return ask(writer, visit, unknown)
    other = rng.choice([("name", "Nice to meet you"), ("town", "I would like to hear about it")])
    first = [
        ("U", f"My {other[0]} is {'called ' if other[0] == 'town' else ''}{name}."),
        ("A", f"{other[1]}, {name}!"),
    ]
    if other[0] == "town":
        first[1] = ("A", f"{name} is a nice name for a town. {other[1]}.")
    return first + ask(
        writer,
        [f"What is {'the name of my town' if other[0] == 'town' else 'my name'}?"],
        [f"Your {other[0]} is {'called ' if other[0] == 'town' else ''}{name}."],
    )


TEXT_TASKS: list[Task] = [
    spelling,
    topics,
    topics,
    ordering,
    rewriting,
    rewriting,
    reading,
    reading,
    strangers,
    strangers,
    records,
    code,
]
