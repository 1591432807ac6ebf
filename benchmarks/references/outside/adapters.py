"""Runs small torch models with adapters of PEFT, whose matrices are random.

Imports no engine. FOLDER/inputs.json has the names of items as "sets". For each item the program writes into
FOLDER/ITEM/: `model.safetensors`, the weights of the model; adapter_model.safetensors and adapter_config.json, written
by PEFT; `gradients.safetensors`, the gradients of a weighted sum of the outputs by the names of the adapter;
`arrays.npz`, the inputs, weights of the sum, and outputs.

The item `qwen-run` is a Qwen 3 of transformers: the program writes `config.json`, `model.safetensors`, and `tokens` in
`arrays.npz`. If FOLDER/qwen-run has the folders `adapter`, of PEFT, and `merged`, of transformers, the program loads
them instead, and writes the logits of the tokens into `there.npz`, with those of the model without an adapter.
"""

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file

RUN = "qwen-run"
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
SETTINGS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


class Block(torch.nn.Module):
    """Two dense layers."""

    def __init__(self):
        super().__init__()
        self.query, self.out = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4)

    def forward(self, x):
        return x + self.out(torch.tanh(self.query(x)))


class Net(torch.nn.Module):
    """A convolution, two blocks and a head, of images [batch, 2, rows, columns]."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(4, 3)

    def forward(self, images):
        x = self.conv(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def run(item, folder, seed):
    """Writes the files of one item."""
    torch.manual_seed(seed)
    net = Net().eval()
    folder.mkdir()
    save_file({name: x.clone() for name, x in net.state_dict().items()}, folder / "model.safetensors")
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=r"conv|layers\.\d+\.(query|out)|head", **SETTINGS[item])
    model = peft.get_peft_model(net, config).eval()
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    with torch.no_grad():
        for name, x in trained.items():
            if "lora_B" in name:
                torch.nn.init.normal_(x)
            elif "magnitude" in name:
                x.mul_(torch.empty_like(x).uniform_(0.5, 1.5))
    images = torch.randn(2, 2, 5, 7)
    outputs = model(images)
    weights = torch.randn_like(outputs)
    (outputs * weights).sum().backward()
    names = {name: name.replace(".default", "") for name in trained}
    names = {name: text.removesuffix(".weight") if "magnitude" in text else text for name, text in names.items()}
    gradients = {names[name]: x.grad.contiguous() for name, x in trained.items()}
    save_file(gradients, folder / "gradients.safetensors")
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    arrays = {"images": images.permute(0, 2, 3, 1), "weights": weights, "outputs": outputs.detach()}
    np.savez(folder / "arrays.npz", **{name: x.numpy() for name, x in arrays.items()})


def write_model(folder):
    """Writes a small Qwen 3 with random weights, and tokens."""
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES)).save_pretrained(folder)
    np.savez(folder / "arrays.npz", tokens=torch.randint(SIZES["vocab_size"], (2, 24)).numpy().astype(np.int32))


def load(folder):
    """Returns a model of transformers; its file must have all parameters and no others."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if wrong := {name: keys for name, keys in found.items() if keys}:
        raise SystemExit(f"{folder}: transformers finds {wrong}")
    return model.eval()


def run_exported(folder):
    """Writes the logits of the model, of the model with the adapter, and of the merged model."""
    tokens = torch.from_numpy(np.load(folder / "arrays.npz")["tokens"]).long()
    with torch.no_grad():
        logits = {"base": load(folder)(tokens).logits, "merged": load(folder / "merged")(tokens).logits}
        model = peft.PeftModel.from_pretrained(load(folder), folder / "adapter")
        logits["adapter"] = model.eval()(tokens).logits
    np.savez(folder / "there.npz", **{name: x.numpy() for name, x in logits.items()})


def main(folder):
    """Runs the items of a folder."""
    items = json.loads((folder / "inputs.json").read_text())["sets"]
    for seed, item in enumerate(items):
        if item == RUN:
            (run_exported if (folder / item / "adapter").is_dir() else write_model)(folder / item)
        elif not (folder / item).is_dir():
            run(item, folder / item, seed)
    versions = {module.__name__: module.__version__ for module in (torch, peft, transformers)}
    (folder / "results.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]))
