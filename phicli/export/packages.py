"""An ONNX folder in the shapes in which other programs take one: a zip, Foundry Local's, a model package of Olive's."""

import contextlib
import io
import json
import shutil
import zipfile
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path

from phicli.artifacts import stages
from phicli.artifacts.generations import link_unchanged
from phicli.artifacts.names import ADAPTERS
from phicli.errors import BadInput
from phicli.export.genai_config import read_config
from phicli.export.resident import BASE, DATA
from phicli.export.slots import MODEL
from phicli.text import TextCodec
from phicli.workflow.patching import replaced
from phicli.workflow.wording import worded

EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip can say
PLACE = "{Content}"  # in Foundry Local's templates: where a message goes


def genai_files(folder: Path) -> dict[str, Path]:
    """The files of an ONNX folder that onnxruntime-genai and its adapters need, by their relative names.

    Raises:
        BadInput: no ONNX model of a text model, or a damaged one. Missing: no such folder.
    """
    read_config(folder)
    stages.check_whole(folder)
    manifest = stages.read_manifest(folder)
    if manifest is None:
        raise BadInput("not a model that phicli optimize made", where=folder, hint="phicli optimize")
    return {name: folder / name for name in sorted(manifest.files) if name != BASE and (folder / name).is_file()}


def write_zip(folder: Path, file: Path, scratch: Path) -> None:
    """Write a folder's files to a zip, uncompressed, with a manifest of theirs: the same files give the same bytes.

    scratch: an empty folder on the same file system.
    """
    files = genai_files(folder)
    have = stages.read_manifest(folder)
    assert have is not None
    have.files = {name: have.files[name] for name in files}
    have.hashes = {name: have.hashes[name] for name in files}
    for entry in have.quality.get("adapters", {}).values():
        entry["source"] = Path(entry["source"]).name  # where it lay is nothing to others
    stages.write_sealed(scratch / stages.MANIFEST, vars(have))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, path in sorted({**files, stages.MANIFEST: scratch / stages.MANIFEST}.items()):
            about = zipfile.ZipInfo(name, EARLIEST)
            about.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(about, "w", force_zip64=path.stat().st_size > 1 << 31) as to:
                shutil.copyfileobj(source, to, 1 << 20)


def write_foundry(folder: Path, output: Path, name: str) -> None:
    """Fill a folder that Foundry Local takes into its cache of models: the graph without adapters, and its name.

    Its scanner wants genai_config.json, and inference_model.json with `Name`. Versions before 2 lay chats out by
    `PromptTemplate`, later ones by the model's own chat template.
    """
    kept = {file for file in genai_files(folder) if not file.startswith((f"{ADAPTERS}/", DATA))}
    base = (folder / BASE).is_file()
    link_unchanged(folder, output, lambda file: file in kept and not (base and file == MODEL))
    if base:
        shutil.copyfile(folder / BASE, output / MODEL)
    if (output / ADAPTERS).is_dir():
        (output / ADAPTERS).rmdir()
    about = {"Name": name, "PromptTemplate": _prompt_template(TextCodec(folder))}
    (output / "inference_model.json").write_text(json.dumps(about, indent=2, ensure_ascii=False), encoding="utf-8")


def _prompt_template(codec: TextCodec) -> Mapping[str, str] | None:
    """A message of each role as the chat template lays it out, with a place for its text; None without a template."""
    def laid_out(*roles: str) -> str:
        return codec.render_chat([{"role": role, "content": PLACE} for role in roles])

    try:
        prompt = laid_out("user")
        before = laid_out("user", "assistant", "user").removesuffix(prompt)
    except BadInput:
        return None
    found, end = {"prompt": prompt}, before.removeprefix(prompt + PLACE)
    head, _, tail = prompt.partition(PLACE)
    if before.startswith(prompt + PLACE) and tail.startswith(end):  # every turn ends alike
        found |= {"user": head + PLACE + end, "assistant": tail.removeprefix(end) + PLACE + end}
    with contextlib.suppress(BadInput):  # a template that takes no system message
        if (both := laid_out("system", "user")).endswith(prompt):
            found["system"] = both.removesuffix(prompt)
    return found


def write_olive_package(folders: Mapping[str, Path], output: Path, name: str, scratch: Path) -> None:
    """Fill a folder with a model package, as Olive's `generate-model-package` writes it.

    Args:
        folders: the ONNX folder of each variant, by the variant's name. The package has one set of files of adapters
            for all of them. scratch: an empty folder on the same file system.

    Raises:
        BadInput: Olive cannot package the models.
    """
    from olive.cli import model_package

    given = []
    for variant, folder in folders.items():
        source = scratch / variant
        source.mkdir()
        link_unchanged(folder, source, genai_files(folder).__contains__)
        given += ["--source", str(source)]
    parser = ArgumentParser()
    model_package.ModelPackageCommand.register_subcommand(parser.add_subparsers())
    package = scratch / "package.ortpackage"
    args = parser.parse_args(["generate-model-package", *given, "--output_path", str(package), "--model_name", name])
    with (worded("Olive cannot package this model", folder), contextlib.redirect_stdout(io.StringIO()),
          replaced(model_package.logger, "disabled", True)):
        args.func(parser, args).run()
    for twice in (package / "configs").glob(f"{DATA}*"):  # it lies beside the graph
        twice.unlink()
    for path in sorted(package.iterdir()):
        path.rename(output / path.name)

