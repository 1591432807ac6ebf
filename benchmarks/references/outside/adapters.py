"""Runs small torch models with adapters of PEFT, whose matrices are random.

Imports no engine. FOLDER/inputs.json has the names of items as "sets". For each item the program writes into
FOLDER/ITEM/: `model.safetensors`, the weights of the model; adapter_model.safetensors and adapter_config.json, written
by PEFT; `gradients.safetensors`, the gradients of a weighted sum of the outputs by the names of the adapter;
`arrays.npz`, the inputs, weights of the sum, and outputs.
"""

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors.torch import save_file

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


def main(folder):
    """Runs the items of a folder."""
    items = json.loads((folder / "inputs.json").read_text())["sets"]
    for seed, item in enumerate(items):
        run(item, folder / item, seed)
    versions = {module.__name__: module.__version__ for module in (torch, peft)}
    (folder / "results.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]))
