"""Whether a tokenizer gives only tokens that its model has an embedding for."""

from contextlib import suppress

from phicli.errors import BadInput
from phicli.hub.models import read_config
from phicli.text import TextCodec


def check_vocabulary(codec: TextCodec, layout: str = "") -> None:
    """Check the tokens that text can become, and the special ones that the chat template and a text template name.

    A tokenizer may have more of the others than the model has embeddings, as Gemma 3's has for images.

    Raises:
        BadInput: a token that the model does not know.
    """
    known = read_config(codec.folder).get("vocab_size")
    if not isinstance(known, int):
        return
    with suppress(BadInput):  # no chat template, or one that chat will refuse
        layout += codec.layout.source
    tokens = {**codec.tokenizer.get_vocab(with_added_tokens=False),
              **{text: ident for text, (ident, _) in codec.special.items() if text in layout}}
    unknown = {ident: text for text, ident in tokens.items() if ident >= known}
    if unknown:
        first = min(unknown)
        raise BadInput(f"the tokenizer has token {first} ({unknown[first]!r}), the model has {known} embeddings",
                       where=codec.folder, hint="the tokenizer.json that came with these weights, or the model saved "
                       "anew after resize_token_embeddings")
