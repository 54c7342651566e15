"""Models with SentencePiece's tokenizer.model and no tokenizer.json: the same files with a converted one beside them.

The model's folder stays as it is. The converted tokenizer lies in phicli's cache, with links to all other files.
"""

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from phicli.artifacts.cache import user_cache
from phicli.artifacts.locks import held
from phicli.artifacts.private import private_folder
from phicli.artifacts.publishing import publishing
from phicli.artifacts.reading import read_bytes
from phicli.errors import BadInput, Missing
from phicli.libraries import subdued
from phicli.progress import Progress

FORM = 1  # of the folder; another one makes all folders anew
FEWEST = 256  # tokens, as many as there are bytes
SLOW, FAST = "tokenizer.model", "tokenizer.json"
READ = ("config.json", SLOW, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def needs_conversion(folder: Path) -> bool:
    return (folder / SLOW).is_file() and not (folder / FAST).is_file()


@subdued()
def with_fast_tokenizer(folder: Path, progress: Progress) -> Path:
    """A folder with the model's files and a tokenizer.json, which transformers makes of tokenizer.model.

    Raises:
        BadInput: no such tokenizer. Missing: the package sentencepiece, or space.
    """
    folder = folder.resolve()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    read = [read_bytes(path) for path in files if path.name in READ]
    key = sha256(repr((FORM, str(folder), [path.name for path in files], read)).encode()).hexdigest()[:16]
    target = private_folder(private_folder(user_cache()) / "converted") / f"{folder.name}-{key}"
    if not target.is_dir() and not find_spec("sentencepiece"):
        raise Missing("has tokenizer.model and no tokenizer.json, and the package sentencepiece, which converts it, is "
                      "not installed", where=folder, hint="pip install 'phicli[sentencepiece]'")
    with held(target, progress):
        if not target.is_dir():
            progress.note(f"converting {folder / SLOW}, once: {target}")
            with publishing(target) as fresh:
                _save_tokenizer(folder, fresh)
                for path in files:
                    if not (fresh / path.name).exists():
                        (fresh / path.name).symlink_to(path)
    return target


def _save_tokenizer(folder: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.save_pretrained(target)
    except Exception as e:
        reason = "no model of SentencePiece's" if "tiktoken" in str(e) else f"{type(e).__name__}: {str(e)[:200]}"
        raise BadInput(f"cannot be converted: {reason}", where=folder / SLOW,
                       hint="the tokenizer.json of the same model, beside it") from None
    if len(tokenizer) < FEWEST or not (target / FAST).is_file():
        raise BadInput(f"gives a tokenizer of {len(tokenizer)} tokens", where=folder / SLOW,
                       hint="the tokenizer.json of the same model, beside it")
