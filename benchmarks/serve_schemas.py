"""Random JSON schemas against `response_format`: each answer is valid, cut off by its length, or refused with a reason.

    python benchmarks/serve_schemas.py --path models/tiny/onnx-ao                       # 1,000 schemas
    python benchmarks/serve_schemas.py --url http://127.0.0.1:8000 --schemas 30

Answers are drawn at temperature 1, so that a model writes what the grammar lets it. A refusal that names no reason,
a status of 500, a hang, or an answer that ended by itself and does not follow its schema is a fault.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from typing import Any

from http_client import SECONDS, Exchange, add_options, server
from jsonschema import Draft202012Validator, FormatChecker

CHAT = "/v1/chat/completions"
NAMES = ("name", "id", "town", "a b", "größe", "$ref", 'quo"te', "", "x.y", "__proto__")
PATTERNS = ("^[a-z]{1,4}$", "[0-9]+", "^(ja|nein)?$", "^\\d{2}:\\d{2}$", "^(?=a)b", "(", "^[^\"]*$")
FORMATS = ("date", "ipv4", "ipv6", "uuid", "email", "nonsense")
VALUES = (None, True, False, 0, -1, 1.5, "", "a", "zwei Wörter", [], {}, [1, "b"], {"a": None})
RARE = ("propertyNames", "dependentRequired", "uniqueItems", "contains")
DEEPEST = 4


class Schemas:
    """Draws schemas: most make sense, some contradict themselves or are none."""

    def __init__(self, seed: int):
        self.chance = random.Random(seed)

    def one(self) -> Any:
        schema = self.any(0)
        if isinstance(schema, dict) and self.chance.random() < 0.15:
            schema["$defs"] = {"node": self.object(2) | {"additionalProperties": {"$ref": "#/$defs/node"}}}
        return schema

    def any(self, depth: int) -> Any:
        simple = [self.string, self.number, self.enum, self.constant]
        nested = [self.object, self.object, self.object, self.array, self.array, self.combined]
        rare = [self.boolean, self.reference, self.typed, self.strange]
        kinds = rare if self.chance.random() < 0.04 else nested if depth < DEEPEST and not (
            depth and self.chance.random() < 0.5) else simple
        return self.chance.choice(kinds)(depth)

    def object(self, depth: int) -> dict[str, Any]:
        names = self.chance.sample(NAMES, self.chance.randrange(4))
        return {"type": "object", "properties": {name: self.any(depth + 1) for name in names}} | self.some({
            "required": lambda: self.chance.sample(names, self.chance.randrange(len(names) + 1)) or ["missing"],
            "additionalProperties": lambda: self.chance.choice([False, False, True, self.any(depth + 1)]),
            "minProperties": lambda: self.chance.randrange(3), "maxProperties": lambda: self.chance.randrange(4),
            "patternProperties": lambda: {self.chance.choice(PATTERNS): self.any(depth + 1)},
            "propertyNames": lambda: {"maxLength": 5}, "dependentRequired": lambda: {"name": ["id"]}})

    def array(self, depth: int) -> dict[str, Any]:
        return {"type": "array", "items": self.any(depth + 1)} | self.some({
            "minItems": lambda: self.chance.randrange(3), "maxItems": lambda: self.chance.randrange(5),
            "prefixItems": lambda: [self.any(depth + 1)], "uniqueItems": lambda: True,
            "contains": lambda: self.any(depth + 1)})

    def string(self, depth: int) -> dict[str, Any]:
        return {"type": "string"} | self.some({
            "minLength": lambda: self.chance.randrange(4), "maxLength": lambda: self.chance.randrange(9),
            "pattern": lambda: self.chance.choice(PATTERNS), "format": lambda: self.chance.choice(FORMATS)})

    def number(self, depth: int) -> dict[str, Any]:
        return {"type": self.chance.choice(["integer", "number"])} | self.some({
            "minimum": lambda: self.chance.randrange(-50, 50), "maximum": lambda: self.chance.randrange(0, 1000),
            "exclusiveMinimum": lambda: self.chance.choice([-0.5, 0, 3]), "exclusiveMaximum": lambda: 7,
            "multipleOf": lambda: self.chance.choice([1, 2, 0.5, 0])})

    def enum(self, depth: int) -> dict[str, Any]:
        return {"enum": self.chance.sample(VALUES, self.chance.randrange(1, 4))}

    def constant(self, depth: int) -> dict[str, Any]:
        return {"const": self.chance.choice(VALUES)}

    def combined(self, depth: int) -> dict[str, Any]:
        kind = self.chance.choice(["anyOf"] * 6 + ["allOf"] * 3 + ["oneOf", "not", "if"])
        if kind == "not":
            return {"not": self.any(depth + 1)}
        if kind == "if":
            return {"if": self.any(depth + 1), "then": self.any(depth + 1)}
        return {kind: [self.any(depth + 1) for _ in range(self.chance.randrange(1, 4))]}

    def boolean(self, depth: int) -> bool | dict[str, Any]:
        return self.chance.choice([True, False, {}]) if depth else {}

    def reference(self, depth: int) -> dict[str, Any]:
        return {"$ref": self.chance.choice(["#", "#/$defs/node", "#/$defs/none", "https://example.com/a.json", "x"])}

    def typed(self, depth: int) -> dict[str, Any]:
        return {"type": self.chance.sample(["string", "integer", "null", "boolean", "object", "array"], 2)}

    def strange(self, depth: int) -> dict[str, Any]:
        return self.chance.choice([{"type": "text"}, {"properties": 3}, {"enum": []}, {"type": "object", "required": 1},
                                   {"minLength": -1, "type": "string"}, {"pattern": "(" * 200, "type": "string"}])

    def some(self, more: dict[str, Any]) -> dict[str, Any]:
        """Each of the keywords now and then; those that are sure to be refused seldom."""
        return {name: make() for name, make in more.items() if self.chance.random() < (0.01 if name in RARE else 0.15)}


def judged(status: int, document: dict[str, Any], schema: Any) -> str:
    """"valid", "cut off" or "refused". Raises whatever a fault of the server leads to."""
    if status == 400:
        error = document["error"]
        assert error["message"] and error["param"], f"refused without a reason: {error}"
        return "refused"
    assert status == 200, f"status {status}: {document}"
    choice = document["choices"][0]
    if choice["finish_reason"] == "length":
        return "cut off"
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(choice["message"]["content"]))
    return "valid"


async def run(place: tuple[str, int], count: int, clients: int, seed: int, tokens: int) -> dict[str, Any]:
    schemas, left = Schemas(seed), iter(range(count))
    done, reasons, faults = Counter[str](), Counter[str](), list[dict[str, Any]]()

    async def client() -> None:
        for number in left:
            schema = schemas.one()
            body = {"messages": [{"role": "user", "content": "Tell me about a town."}], "max_tokens": tokens,
                    "temperature": 1, "seed": number,
                    "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}
            document: Any = None
            try:
                async with asyncio.timeout(SECONDS), Exchange(place) as exchange:
                    await exchange.send(CHAT, body)
                    status, document = await exchange.status(), await exchange.document()
                found = judged(status, document, schema)
                if found == "refused":
                    reasons[document["error"]["message"][:90]] += 1
            except Exception as e:
                found = "fault"
                faults.append({"number": number, "schema": schema, "why": f"{type(e).__name__}: {e}"[:300],
                               "answer": document})
            done[found] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return {"schemas": count, "found": dict(done), "reasons": dict(reasons.most_common(20)), "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=120, help="at most, of an answer")
    args = parser.parse_args()
    with server(args) as (place, _):
        found = asyncio.run(run(place, min(args.schemas, 100_000), min(args.clients, 64), args.seed, args.tokens))
    print(json.dumps(found, indent=2, ensure_ascii=False))
    if found["faults"]:
        raise SystemExit(f"{len(found['faults'])} faults")


if __name__ == "__main__":
    main()
