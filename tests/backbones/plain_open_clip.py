"""The two towers of an OpenCLIP ViT, written plainly, under the names that the library stores them by."""

import json

import torch
from safetensors.torch import save_file
from torch import nn

SETTINGS = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 16,
        "layers": 2,
        "width": 32,
        "head_width": 8,
        "patch_size": 8,
        "mlp_ratio": 1.5,
    },
    "text_cfg": {"context_length": 32, "width": 16, "heads": 2, "layers": 2},
}


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, ratio, activation):
        super().__init__()
        hidden = int(width * ratio)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.activation = activation

    def forward(self, x, mask=None):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class Transformer(nn.Module):
    def __init__(self, width, heads, layers, ratio, activation):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, ratio, activation) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, settings, embed_dim, activation):
        super().__init__()
        width, patch = settings["width"], settings["patch_size"]
        tokens = (settings["image_size"] // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        heads = width // settings["head_width"]
        self.transformer = Transformer(width, heads, settings["layers"], settings["mlp_ratio"], activation)
        self.proj = nn.Parameter(torch.randn(width, embed_dim))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class PlainOpenClip(nn.Module):
    def __init__(self, vocabulary, quick_gelu=False):
        super().__init__()
        activation = QuickGELU() if quick_gelu else nn.GELU()
        text, embed_dim = SETTINGS["text_cfg"], SETTINGS["embed_dim"]
        width = text["width"]
        self.visual = Visual(SETTINGS["vision_cfg"], embed_dim, activation)
        self.transformer = Transformer(width, text["heads"], text["layers"], 4.0, activation)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(text["context_length"], width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, tokens):
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection


def write_open_clip(folder, vocabulary=64, quick_gelu=False):
    """A base folder as the library's hub folders are; returns the model."""
    torch.manual_seed(0)
    model = PlainOpenClip(vocabulary, quick_gelu).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "ln_" in name:
            parameter.add_(0.1 * torch.randn(parameter.shape))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    text = {**SETTINGS["text_cfg"], "vocab_size": vocabulary}
    settings = {"model_cfg": {**SETTINGS, "text_cfg": text, "quick_gelu": quick_gelu}}
    settings["preprocess_cfg"] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    return model
