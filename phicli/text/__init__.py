"""Text to tokens and back. What a user typed or a row holds is text: it never becomes a control token."""

from phicli.text.codec import Message, TextCodec, TokenStream
from phicli.text.conversation import Conversation
from phicli.text.encoded import Encoded
from phicli.text.template import TextTemplate

__all__ = ["Conversation", "Encoded", "Message", "TextCodec", "TextTemplate", "TokenStream"]
