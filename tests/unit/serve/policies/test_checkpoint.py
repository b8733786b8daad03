import json
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.engine.tensors import INDEX, WEIGHTS
from serve.errors import BadCheckpoint
from serve.policies.checkpoint import ensure_fits, read_checkpoint, shapes_in
from serve.wire import PolicyKind

Make = Callable[..., Path]

FULL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")


def test_a_full_checkpoint_is_what_serving_needs(make_full: Make) -> None:
    found = read_checkpoint(make_full("a"))
    assert (found.kind, found.files) == (PolicyKind.FULL, FULL_FILES)
    assert found.shapes["model.embed_tokens.weight"] == (8, 4)


def test_a_lora_is_told_by_its_config(make_lora: Make) -> None:
    found = read_checkpoint(make_lora("a"))
    assert (found.kind, found.files) == (PolicyKind.LORA, LORA_FILES)


def test_shards_come_from_the_index(make_full: Make) -> None:
    folder = make_full("a")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    placed = {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    assert "model-00001-of-00001.safetensors" in read_checkpoint(folder).files


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1])


def cut_in_the_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:20])


def lengthen(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"x")


def index_without_files(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {"a": "gone.safetensors", "b": "../up"}}')


def index_beside(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / INDEX).write_text('{"weight_map": {"a": "other.safetensors"}}')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "cannot read .*config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type"),
        (lambda folder: (folder / "config.json").write_text("[]"), "JSON object"),
        (lambda folder: (folder / WEIGHTS).unlink(), "neither model.safetensors nor"),
        (cut, "bytes of weights, found"),
        (cut_in_the_header, "cut short"),
        (lengthen, "bytes of weights, found"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "cut short"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\2" + b"\0" * 7 + b"[]"), "not a whole"),
        (index_without_files, r"not there: \.\./up, gone.safetensors"),
        (index_beside, "does not name it"),
        (lambda folder: (folder / INDEX).write_text("{}"), "no weight_map"),
        (lambda folder: (folder / INDEX).write_text("{"), "not JSON"),
    ],
)
def test_bad_full_checkpoints(
    make_full: Make, damage: Callable[[Path], object], reason: str
) -> None:
    folder = make_full("a")
    damage(folder)
    with pytest.raises(BadCheckpoint, match=reason):
        read_checkpoint(folder)


def test_a_tensor_in_two_files(make_full: Make) -> None:
    folder = make_full("a")
    for shard in ("1.safetensors", "2.safetensors"):
        (folder / shard).write_bytes((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).unlink()
    placed = {"a": "1.safetensors", "b": "2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(BadCheckpoint, match="in two of its files"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("adapter_config.json", '{"peft_type": "IA3"}', "does not describe a LoRA"),
        ("adapter_model.safetensors", None, "has no adapter_model"),
    ],
)
def test_bad_loras(make_lora: Make, file: str, text: str | None, reason: str) -> None:
    folder = make_lora("a")
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(BadCheckpoint, match=reason):
        read_checkpoint(folder)


def test_a_lora_that_holds_more_than_a_lora(make_lora: Make) -> None:
    folder = make_lora("a", tensors={"base_model.model.lm_head.weight": (8, 4)})
    with pytest.raises(BadCheckpoint, match=r"found base_model\.model\.lm_head"):
        read_checkpoint(folder)


def test_kind_and_folder_must_be_what_they_are_called(make_full: Make, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="of kind full, not lora"):
        read_checkpoint(make_full("a"), PolicyKind.LORA)
    with pytest.raises(BadCheckpoint, match="not a folder"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"model.embed_tokens.weight": (8, 4)}, "1 missing, such as model.layers.0.q_proj"),
        (
            {"model.embed_tokens.weight": (8, 5), "model.layers.0.q_proj.weight": (4, 4)},
            "1 of another shape, such as model.embed",
        ),
        (
            {
                "model.embed_tokens.weight": (8, 4),
                "model.layers.0.q_proj.weight": (4, 4),
                "model.layers.1.q_proj.weight": (4, 4),
            },
            "1 not expected, such as model.layers.1",
        ),
    ],
)
def test_full_checkpoints_that_do_not_fit(
    make_full: Make, tensors: dict[str, tuple[int, ...]], reason: str
) -> None:
    base = shapes_in(make_full("base"))
    with pytest.raises(BadCheckpoint, match=reason):
        ensure_fits(read_checkpoint(make_full("other", tensors=tensors)), base, "p@1")


def test_a_tied_head_may_be_written_out(make_full: Make) -> None:
    base = shapes_in(make_full("base"))
    tensors = base | {"lm_head.weight": (8, 4)}
    ensure_fits(read_checkpoint(make_full("other", tensors=tensors)), base, "p@1")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (
            {"base_model.model.model.layers.0.q_proj.lora_A.weight": (2, 5)},
            r"was not made for p@1: .* is \(2, 5\), its base \(4, 4\)",
        ),
        ({"base_model.model.model.layers.7.q_proj.lora_A.weight": (2, 4)}, "adapts no layer"),
    ],
)
def test_loras_that_do_not_fit(
    make_full: Make, make_lora: Make, tensors: dict[str, tuple[int, ...]], reason: str
) -> None:
    base = shapes_in(make_full("base"))
    ensure_fits(read_checkpoint(make_lora("good")), base, "p@1")
    with pytest.raises(BadCheckpoint, match=reason):
        ensure_fits(read_checkpoint(make_lora("bad", tensors=tensors)), base, "p@1")
