"""How rows become tokens: as the model's own chat template lays them out, or as a text template of the user's says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from phicli.artifacts.reading import read_text
from phicli.dataset.contents import RowParser
from phicli.dataset.understood import Content, TemplatedRow
from phicli.errors import BadInput
from phicli.progress import SILENT, Progress
from phicli.text import Conversation, Encoded, TextCodec, TextTemplate
from phicli.text.agreement import as_chat_template, disagreement, plain_chat
from phicli.text.layout import LONGEST, MERGED_SYSTEM, SYSTEM, TEMPLATE_FILE, has_template, template_options


class RowSettings(Protocol):
    """What steps know of rows; see `phicli.config.bases.OfRows`."""

    @property
    def text_template(self) -> str | None: ...
    @property
    def format(self) -> str | None: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def chat_template_kwargs(self) -> Sequence[str]: ...


class RowEncoder:
    """Encodes what rows say for one model.

    Args:
        folder: of the model. fallbacks: folders whose chat template it takes where the model has none, such as those of
            adapters that were trained on it.

    Attributes:
        template: the text template, if there is one. given: the file of the chat template, where the settings name one.

    Raises:
        BadInput: no tokenizer, or a damaged one; a chat template that cannot be read.
    """

    def __init__(self, folder: Path, settings: RowSettings, fallbacks: Sequence[Path] = (),
                 progress: Progress = SILENT):
        self.template = TextTemplate(settings.text_template) if settings.text_template else None
        self.given = settings.chat_template
        codec = TextCodec(folder, options=template_options(settings.chat_template_kwargs))
        self.source = _chat_template(codec, settings, fallbacks, progress)
        self.codec = codec.under(self.source) if self.source else codec
        if settings.chat_template:
            try:
                self.codec.layout  # noqa: B018 (it is read, and may be wrong)
            except BadInput as e:
                raise BadInput(e.message, where=settings.chat_template) from None
        self._progress, self._told = progress, False

    def encode(self, content: Content) -> Encoded:
        """Ids and what counts. Raises BadInput: the chat template refuses the messages, or a text cannot be encoded."""
        if isinstance(content, Conversation):
            if not self._told and content.messages[0]["role"] == SYSTEM and self.codec.layout.refuses_system:
                self._progress.note(MERGED_SYSTEM)
                self._told = True
            return self.codec.encode_conversation(content)
        if isinstance(content, TemplatedRow):
            assert self.template
            return self.codec.encode_row(self.template, content.fields)
        return self.codec.encode_document(content)


def layout_fault(encoder: RowEncoder) -> str | None:
    """Why what is trained would not be what chat sends, in words: a text template differs from the chat template, or no
    token that ends an answer would be learnt. Raises BadInput: there is no chat template."""
    found = disagreement(encoder.codec, encoder.template) if encoder.template else None
    if found is None and encoder.codec.turns.end is None:
        found = "the model would not learn to end an answer: no token does that"
    return found


def check_layout(encoder: RowEncoder, force: bool, progress: Progress = SILENT) -> None:
    """Check that the rows are trained as chat will send them. Raises BadInput: see `layout_fault`. force: a warning."""
    found = layout_fault(encoder)
    if found and not force:
        raise BadInput(f"the rows would not be laid out as chat lays them out: {found}",
                       where="--text-template" if encoder.template else encoder.given or encoder.codec.folder,
                       hint="leave --text-template out, or --force-template" if encoder.template else
                       "a --chat-template FILE that ends answers in a token of the model's, or --force-template")
    if found:
        progress.warn(f"rows are not laid out as chat lays them out: {found}")


def end_of_turn(encoder: RowEncoder) -> str | None:
    """The token that ends an answer; None if there is none, or no chat template."""
    try:
        return encoder.codec.turns.end
    except BadInput:
        return None


def row_parser(settings: RowSettings) -> RowParser:
    """What understands the rows. Raises BadInput: a wrong text template."""
    return RowParser(settings.format, settings.columns,
                     TextTemplate(settings.text_template) if settings.text_template else None)


def _chat_template(codec: TextCodec, settings: RowSettings, fallbacks: Sequence[Path],
                   progress: Progress) -> str | None:
    """The source of another chat template than the folder's own; None if that is to be used."""
    if settings.chat_template:
        try:
            return read_text(Path(settings.chat_template), LONGEST)
        except FileNotFoundError:
            raise BadInput("no such chat template", where=settings.chat_template) from None
    if has_template(codec.folder):
        return None
    found = next((path / TEMPLATE_FILE for path in fallbacks if (path / TEMPLATE_FILE).is_file()), None)
    if found:
        return read_text(found, LONGEST)
    if settings.text_template:
        return as_chat_template(codec, TextTemplate(settings.text_template))
    if codec.end_of_text:
        progress.note("the model has no chat template: it gets a plain one (User: … Assistant: …); "
                      "--chat-template FILE gives another")
        return plain_chat(codec)
    return None
