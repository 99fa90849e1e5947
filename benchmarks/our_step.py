"""Our side of the training step: a GPT-2 style decoder, full fine-tuning or LoRA, AdamW."""

import numpy as np

from minipeft.methods import Full, LoRA, attach
from minipeft.models import Decoder, LMHead, TransformerConfig
from minipeft.training import AdamW

from .settings import ADAMW, ALPHA, RANK


class OurStep:
    """A model, its optimizer and a batch; calling it makes one training step and returns the loss.

    Args:
        row: a `settings.Row`. method: ``full`` or ``lora``. ids: (B, T) token ids.
    """

    def __init__(self, row, method, ids):
        config = TransformerConfig(
            model_type="gpt2", vocab_size=row.vocabulary, hidden_size=row.width, num_hidden_layers=row.layers,
            num_attention_heads=row.heads, intermediate_size=4 * row.width, max_position_embeddings=row.length,
            hidden_act="gelu_new", tie_word_embeddings=False, head_bias=True)
        rng = np.random.default_rng(0)
        self.model = Decoder(config, rng)
        self.model.head = LMHead(config, None, rng)
        chosen = Full() if method == "full" else LoRA(rank=RANK, alpha=ALPHA, targets="attn.q,attn.v")
        self.attachment = attach(self.model, chosen, rng=rng)
        self._leave_zero(rng)
        self.optimizer = AdamW(list(self.trainable().values()), **ADAMW)
        self.ids = ids

    def _leave_zero(self, rng):
        """Biases, norms and LoRA's V start as constants, which would hide mistakes: move each a little."""
        for parameter in self.parameters().values():
            if parameter.ndim == 1 or not parameter.data.any():
                parameter.data += 0.02 * rng.standard_normal(parameter.shape, np.float32)

    def trainable(self):
        """{path: Parameter} of what is trained."""
        return self.attachment.named_parameters()

    def parameters(self):
        """{path: Parameter} of everything, LoRA's included."""
        return dict(self.model.named_parameters()) | self.trainable()

    def gradients(self):
        """Loss and {path: array} of the gradients, without a step."""
        self.optimizer.zero_grad()
        loss = self.model(self.ids, labels=self.ids).loss
        loss.backward()
        return loss.item(), {path: p.grad for path, p in self.trainable().items()}

    def __call__(self):
        self.optimizer.zero_grad()
        loss = self.model(self.ids, labels=self.ids).loss
        loss.backward()
        self.optimizer.step()
        return loss.item()
