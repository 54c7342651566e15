"""Many requests on one model at once, each with an adapter of its own.

    with Engine("models/tiny/onnx-ao") as engine:
        ids = engine.codec_of("travel").encode_chat([{"role": "user", "content": "Where should I go in spring?"}])
        for event in engine.generate(Request(ids, adapter="travel", max_tokens=100)):
            ...
"""

from phicli.inference.engine.engine import Engine, Handle
from phicli.inference.engine.grammar import Grammar
from phicli.inference.engine.opening import Unfit
from phicli.inference.engine.request import Busy, EngineStats, Finish, NameTaken, Piece, Request, TokenLogprob

__all__ = ["Busy", "Engine", "EngineStats", "Finish", "Grammar", "Handle", "NameTaken", "Piece", "Request",
           "TokenLogprob", "Unfit"]
