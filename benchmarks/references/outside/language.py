"""Runs Llama and Qwen 3 of transformers with random weights on padded and on packed rows, on a CPU in float32.

Imports no engine. FOLDER/inputs.json has the names of items as "sets". For each item the program writes into
FOLDER/ITEM/: `config.json` and `model.safetensors`, as transformers saves a model; `gradients.safetensors`, the
gradients of the summed losses by the same names; `arrays.npz`, the batch and the logits. A folder FOLDER/ITEM/written
has `config.json` and `model.safetensors` of the engine: the program then loads this folder instead, and writes the
logits into `written/logits.npy`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FEW = {"original_max_position_embeddings": 16, "factor": 4.0, "rope_theta": 100.0}
ROWS = {"original_max_position_embeddings": 8192}
TINY = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}


def llama(vocab=1024, eps=1e-5, **settings):
    """Returns a config of the form of Llama 3."""
    return LlamaConfig(**{"vocab_size": vocab, "num_key_value_heads": 8, "rms_norm_eps": eps, **settings})


def qwen(vocab=1024, theta=1e6, **settings):
    """Returns a config of the form of Qwen 3."""
    rope = {"rope_type": "default", "rope_theta": theta}
    return Qwen3Config(**{"vocab_size": vocab, "num_key_value_heads": 8, "rope_parameters": rope, **settings})


MODELS = {
    "tiny-llama": llama(
        **TINY, num_attention_heads=2, num_key_value_heads=1, head_dim=8, rope_parameters={**LLAMA_3, **FEW}
    ),
    "tiny-qwen3": qwen(
        **TINY, theta=100.0, num_attention_heads=4, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True
    ),
    # The sizes of these models, but for fewer layers and tokens.
    "Llama-3.2-1B": llama(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=2,
        num_attention_heads=32,
        head_dim=64,
        tie_word_embeddings=True,
        rope_parameters={**LLAMA_3, **ROWS, "factor": 32.0},
    ),
    "Llama-3.1-8B": llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=1,
        num_attention_heads=32,
        rope_parameters={**LLAMA_3, **ROWS, "factor": 8.0},
    ),
    "Qwen3-0.6B": qwen(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=4,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "Qwen3-8B": qwen(hidden_size=4096, intermediate_size=12288, num_hidden_layers=1, num_attention_heads=32),
}


def randomize(model):
    """Gives the parameters values of which all logits depend."""
    for name, x in model.named_parameters():
        if x.dim() == 1:
            torch.nn.init.uniform_(x, 0.5, 1.5)
        else:
            torch.nn.init.normal_(x, std=0.5 if "embed" in name else x.shape[1] ** -0.5)


def batch_of(vocabulary, time):
    """Returns packed rows: two documents in a row, each of them in a padded row, and a full row."""
    first, second = time // 3, time // 2
    lengths = [(first, second), (first,), (second,), (time,)]
    documents = [torch.randint(vocabulary, (n + 1,)) for n in (first, second, time)]
    chosen = [(0, 1), (0,), (1,), (2,)]
    arrays = {
        name: torch.zeros(4, time, dtype=torch.long) for name in ("tokens", "targets", "segment_ids", "positions")
    }
    for row, (sizes, numbers) in enumerate(zip(lengths, chosen, strict=True)):
        start = 0
        for segment, (size, number) in enumerate(zip(sizes, numbers, strict=True), start=1):
            place = slice(start, start + size)
            arrays["tokens"][row, place] = documents[number][:-1]
            arrays["targets"][row, place] = documents[number][1:]
            arrays["segment_ids"][row, place] = segment
            arrays["positions"][row, place] = torch.arange(size)
            start += size
    return arrays


def logits_of(model, batch):
    """Returns the logits: of the padded rows by a mask of padding, of the first by positions and a mask of blocks."""
    segments = batch["segment_ids"]
    same = (segments[:1, None, :, None] == segments[:1, None, None, :]).tril()
    mask = torch.where(same, 0.0, torch.finfo(torch.float32).min)
    packed = model(batch["tokens"][:1], attention_mask=mask, position_ids=batch["positions"][:1], use_cache=False)
    padded = model(batch["tokens"][1:], attention_mask=(segments[1:] > 0).long(), use_cache=False)
    return torch.cat([packed.logits, padded.logits])


def run(item, folder, seed):
    """Writes the files of one item."""
    torch.manual_seed(seed)
    config = MODELS[item]
    config._attn_implementation = "eager"
    model = (Qwen3ForCausalLM if config.model_type == "qwen3" else LlamaForCausalLM)(config).eval()
    with torch.no_grad():
        randomize(model)
    model.save_pretrained(folder)
    batch = batch_of(config.vocab_size, 24 if "tiny" in item else 96)
    logits = logits_of(model, batch)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
    (losses * (batch["segment_ids"] > 0).flatten()).sum().backward()
    gradients = {name: x.grad.contiguous() for name, x in model.named_parameters()}
    save_file(gradients, folder / "gradients.safetensors")
    arrays = {name: x.numpy().astype(np.int32) for name, x in batch.items()}
    np.savez(folder / "arrays.npz", logits=logits.detach().numpy(), **arrays)


def run_written(folder):
    """Writes the logits of the model that the engine has written, which must have the type of the original one."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "written", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    if type(model) is not type(transformers.AutoModelForCausalLM.from_pretrained(folder)):
        raise SystemExit(f"{folder.name}: transformers finds a {type(model).__name__}")
    if wrong := {name: keys for name, keys in found.items() if keys}:
        raise SystemExit(f"{folder.name}: transformers finds {wrong}")
    with np.load(folder / "arrays.npz") as stored:
        batch = {name: torch.from_numpy(x).long() for name, x in stored.items() if name != "logits"}
    with torch.no_grad():
        np.save(folder / "written" / "logits.npy", logits_of(model.eval(), batch).numpy())


def main(folder):
    """Runs the items of a folder."""
    for seed, item in enumerate(json.loads((folder / "inputs.json").read_text())["sets"]):
        if (folder / item / "written").is_dir():
            run_written(folder / item)
        else:
            run(item, folder / item, seed)
    versions = {module.__name__: module.__version__ for module in (torch, transformers)}
    (folder / "results.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]))
