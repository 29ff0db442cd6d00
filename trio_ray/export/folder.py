"""A folder that another engine's user runs at once: tensors, a line for each prefix, and a script of a few lines."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import ConfigError
from trio_ray.export.forms import Exported, Exporter, FormName, beginning
from trio_ray.model.checkpoint import Checkpoint
from trio_ray.model.loading import load_processor

Engine = Literal["vllm", "transformers"]

SHARD_BYTES = 1 << 30
ANSWER_TOKENS = 32

_SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Written:
    """What an export has written."""

    prefixes: int
    files: tuple[Path, ...]


def write_folder(
    folder: Path,
    engine: Engine,
    exporter: Exporter,
    rows: Iterable[dict[str, Any]],
    checkpoint: Checkpoint,
    model: str,
    bodies: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Written:
    """Write prefixes for an engine.

    Args:
        folder: where; it must be empty.
        engine: who reads it.
        exporter: gives the prefixes.
        rows: of the cache's table.
        checkpoint: the model that made the cache.
        model: how the engine names it: a folder or a hub name.
        bodies: also write ready HTTP bodies for vLLM's server.
        shard_bytes: bytes of tensors after which a new file is begun.

    Raises:
        ConfigError: the folder is not empty.
        PrefixError, StoreError: the cache cannot be read.
    """
    if any(folder.iterdir()):
        raise ConfigError("--out", f"{folder} is not empty; give a new folder")
    files = [folder / name for name in ("export.json", "prefixes.jsonl", f"run_{engine}.py")]
    count = 0
    requests = (folder / "requests.jsonl").open("w", encoding="utf-8") if bodies else None
    with files[1].open("w", encoding="utf-8") as lines:
        for shard, (name, group) in enumerate(_in_shards(exporter.export(rows), shard_bytes)):
            tensors: dict[str, Tensor] = {}
            for item in group:
                tensors |= {f"{count}.{kind}": tensor.contiguous() for kind, tensor in item.tensors.items()}
                lines.write(_json(_line(item, name, count)))
                if requests is not None:
                    requests.write(_json(_http_request(item, exporter.form, model)))
                count += 1
            save_file(tensors, folder / name)
            files.insert(2 + shard, folder / name)
    if requests is not None:
        requests.close()
        files.append(folder / "requests.jsonl")
    files[0].write_text(json.dumps(_about(exporter, model, count), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(_SCRIPTS / f"{engine}_{exporter.form}.py", folder / f"run_{engine}.py")
    if engine == "vllm":
        files.append(_write_template(folder, checkpoint))
    return Written(count, tuple(files))


def _in_shards(exported: Iterable[Exported], shard_bytes: int) -> Iterator[tuple[str, list[Exported]]]:
    """Prefixes by the file that holds them."""
    group: list[Exported] = []
    size = number = 0
    for item in exported:
        own = sum(tensor.nbytes for tensor in item.tensors.values())
        if group and size + own > shard_bytes:
            yield f"prefixes-{number:05d}.safetensors", group
            group, size, number = [], 0, number + 1
        group.append(item)
        size += own
    if group:
        yield f"prefixes-{number:05d}.safetensors", group


def _line(item: Exported, file: str, number: int) -> dict[str, Any]:
    """What `prefixes.jsonl` says of a prefix; its tensors are called `<number>.<kind>`."""
    row = item.row
    return {
        "key": row["key"],
        "shard": row["shard"],
        "file": file,
        "number": number,
        "rows": item.rows,
        "image_rows": item.image_rows,
        "prefix": row["prompt"],
        "turns": row["turns"],
        "answer": row["answer"],
        **item.request,
    }


def _about(exporter: Exporter, model: str, count: int) -> dict[str, Any]:
    cache: PrunedCache = exporter.cache
    return {
        "form": exporter.form,
        "prefixes": count,
        "model": model,
        "dtype": cache.dataset.identity["model"]["dtype"],
        "cache": cache.uri if "://" in cache.uri else str(Path(cache.uri).resolve()),
        "identity_hash": cache.dataset.identity_hash,
        "scope": cache.scope,
        "method": cache.dataset.identity["method"],
    }


def _http_request(item: Exported, form: FormName, model: str) -> dict[str, Any]:
    """A line of OpenAI's batch format, which `vllm run-batch` also takes: which URL gets which body."""
    url, own = _http_body(item, form)
    body = {"model": model, "temperature": 0, "max_tokens": ANSWER_TOKENS, **own}
    return {"custom_id": f"{item.row['shard']}:{item.row['key']}", "method": "POST", "url": url, "body": body}


def _http_body(item: Exported, form: FormName) -> tuple[str, dict[str, Any]]:
    if form == "kv":
        request = dict(item.request)
        return "/v1/completions", {"prompt": request.pop("prompt_token_ids"), **request}
    if form == "prompt_embeds":
        return "/v1/completions", {"prompt_embeds": _base64(item.tensors["prompt_embeds"])}
    image = {"type": "image_embeds", "image_embeds": _base64(item.tensors["image_rows"]), "uuid": item.row["key"]}
    first, *others = item.row["turns"]
    messages = [
        {"role": first["role"], "content": [image, {"type": "text", "text": first["text"]}]},
        *({"role": turn["role"], "content": turn["text"]} for turn in others),
    ]
    return "/v1/chat/completions", {"messages": messages}


def _base64(tensor: Tensor) -> str:
    """A tensor as vLLM's server takes it. A clone, because `torch.save` writes all of a view's memory."""
    buffer = io.BytesIO()
    torch.save(tensor.clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _write_template(folder: Path, checkpoint: Checkpoint) -> Path:
    """The model's chat template for vLLM's `--chat-template`.

    vLLM's server tokenizes a rendered chat without the beginning-of-sequence token that the tokenizer would add, so the
    template has to write it.
    """
    processor, _ = load_processor(checkpoint.folder)
    bos = beginning(processor)
    rendered = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "x"}]}])
    written = "" if rendered.startswith(bos) else "{{ bos_token }}"
    path = folder / "chat_template.jinja"
    path.write_text(written + processor.chat_template, encoding="utf-8")
    return path


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
