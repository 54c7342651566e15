"""Asking an engine one thing."""

from phicli.inference.engine import Engine, Finish, Piece, Request

QUESTION = [{"role": "user", "content": "Where should I go in spring?"}]


def ask(engine: Engine, **settings) -> tuple[str, list[Piece], Finish]:
    *pieces, end = engine.generate(Request(engine.codec_of(None).encode_chat(QUESTION), **settings))
    assert isinstance(end, Finish) and all(isinstance(piece, Piece) for piece in pieces)
    return "".join(piece.text for piece in pieces), pieces, end
