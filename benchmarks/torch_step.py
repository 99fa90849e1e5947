"""PyTorch's side of the training step: the same decoder written plainly in eager PyTorch, under the same parameter names."""

import torch
from torch import nn
from torch.nn import functional as F

from .settings import ADAMW, ALPHA, RANK


class LoRALinear(nn.Linear):
    """A frozen Linear with a low-rank change beside it; U (R, D_in) and V (D_out, R) are stored as PyTorch stores weights."""

    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out)
        self.U = nn.Parameter(torch.zeros(RANK, d_in))
        self.V = nn.Parameter(torch.zeros(d_out, RANK))

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x, self.U) * (ALPHA / RANK), self.V)


class Attention(nn.Module):
    def __init__(self, row, adapted):
        super().__init__()
        self.heads = row.heads
        self.norm = nn.LayerNorm(row.width)
        self.q = adapted(row.width, row.width)
        self.k = nn.Linear(row.width, row.width)
        self.v = adapted(row.width, row.width)
        self.out = nn.Linear(row.width, row.width)

    def forward(self, x):
        batch, length, width = x.shape
        h = self.norm(x)
        split = lambda y: y.view(batch, length, self.heads, width // self.heads).transpose(1, 2)  # (B, H, T, K)
        a = F.scaled_dot_product_attention(split(self.q(h)), split(self.k(h)), split(self.v(h)), is_causal=True)
        return x + self.out(a.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    def __init__(self, row):
        super().__init__()
        self.norm = nn.LayerNorm(row.width)
        self.up = nn.Linear(row.width, 4 * row.width)
        self.down = nn.Linear(4 * row.width, row.width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


class Decoder(nn.Module):
    def __init__(self, row, method):
        super().__init__()
        adapted = LoRALinear if method == "lora" else nn.Linear
        self.embed = nn.ModuleDict({"tokens": nn.Embedding(row.vocabulary, row.width),
                                    "position": nn.Embedding(row.length, row.width)})
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention(row, adapted), "mlp": MLP(row)})
                                    for _ in range(row.layers))
        self.final_norm = nn.LayerNorm(row.width)
        self.head = nn.ModuleDict({"output": nn.Linear(row.width, row.vocabulary)})

    def forward(self, ids):
        x = self.embed["tokens"](ids) + self.embed["position"](torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block["mlp"](block["attn"](x))
        return self.head["output"](self.final_norm(x))  # (B, T, V)


def transposed(path):
    """Whether PyTorch stores this parameter as (out, in) and we as (in, out)."""
    return path.endswith(".U") or path.endswith(".weight") and "norm" not in path and not path.startswith("embed.")


class TorchStep:
    """As `our_step.OurStep`, in PyTorch."""

    def __init__(self, row, method, ids, threads):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.model = Decoder(row, method)
        for path, parameter in self.model.named_parameters():
            parameter.requires_grad_(method == "full" or path.endswith((".U", ".V")))
        betas, eps = ADAMW["betas"], ADAMW["eps"]
        self.optimizer = torch.optim.AdamW(list(self.trainable().values()), lr=ADAMW["lr"], betas=betas, eps=eps,
                                           weight_decay=ADAMW["weight_decay"], fused=True)
        self.ids = torch.from_numpy(ids)

    def trainable(self):
        """{path: Parameter} of what is trained."""
        return {path: p for path, p in self.model.named_parameters() if p.requires_grad}

    def load(self, arrays):
        """Take over {path: array} in our layout; every parameter must be there, and no other."""
        parameters = dict(self.model.named_parameters())
        if parameters.keys() != arrays.keys():
            raise SystemExit(f"the two models have different parameters: {sorted(parameters.keys() ^ arrays.keys())[:6]}")
        with torch.no_grad():
            for path, parameter in parameters.items():
                array = torch.from_numpy(arrays[path])
                parameter.copy_(array.T if transposed(path) else array)

    def loss(self):
        """Mean cross-entropy of each next token."""
        following = torch.full_like(self.ids, -100)
        following[:, :-1] = self.ids[:, 1:]
        logits = self.model(self.ids)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), following.view(-1), ignore_index=-100)

    def gradients(self):
        """Loss and {path: array} of the gradients in our layout, without a step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return loss.item(), {path: (p.grad.T if transposed(path) else p.grad).numpy() for path, p in self.trainable().items()}

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()
