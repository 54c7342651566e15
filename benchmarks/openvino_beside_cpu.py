"""OpenVINO beside our CPU path: one folder on both, in turns; medians and their ratio.

    python benchmarks/openvino_beside_cpu.py models/NAME/onnx-ao --adapter travel --threads 2

It needs `pip install 'phicli[openvino]'`. Any folder built with --device cpu or openvino will do; both run its graph.
"""

import argparse
import os
import statistics
import time

PROVIDERS = ("cpu", "openvino")


def measure(session, adapter: str | None, prompt: int, new: int) -> tuple[float, float]:
    """Tokens a second of a prompt, and of an answer."""
    generator = session.generator(prompt + new + 1, adapter)
    begun = time.perf_counter()
    generator.append_tokens([5 + at % 200 for at in range(prompt)])
    first = generator.next_token()
    prefilled = time.perf_counter()
    assert isinstance(first, int)
    for _ in range(new):
        generator.next_token()
    return prompt / (prefilled - begun), new / (time.perf_counter() - prefilled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--adapter")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    from phicli import Session  # which reads that

    sessions = {name: Session(given.folder, name, adapters=bool(given.adapter)) for name in PROVIDERS}
    for session in sessions.values():
        measure(session, given.adapter, given.prompt, 4)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROVIDERS}
    for _ in range(given.rounds):
        for name, session in sessions.items():
            found[name].append(measure(session, given.adapter, given.prompt, given.new))
    for number, what in enumerate(("prompt", "decode")):
        rates = {name: [pair[number] for pair in pairs] for name, pairs in found.items()}
        for kind, of in (("median", statistics.median), ("best", max)):
            cpu, openvino = (of(rates[name]) for name in PROVIDERS)
            print(f"{what}, {kind}: cpu {cpu:.1f}, openvino {openvino:.1f} tokens/s, ratio {openvino / cpu:.2f}")


if __name__ == "__main__":
    main()
