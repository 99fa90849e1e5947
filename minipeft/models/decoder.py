"""The decoders GPT-2 and LLaMA: a token sees only what came before it, norms come before the sub-layers.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; Touvron et al., 2023, arXiv:2302.13971.
"""

from .transformer import Transformer


class Decoder(Transformer):
    """GPT-2 or LLaMA, by its config. ``head`` is an `LMHead`, a `ClassificationHead` or None."""

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, output_hidden_states=False,
                cache=None):
        """Run the model.

        Args:
            input_ids: (B, T) ints; with a cache, only the new tokens.
            attention_mask: (B, S), 1 or True where a token is real, the cached ones included; default: all are.
            token_type_ids: not used by decoders; taken so that encoders and decoders are called alike.
            labels: (B, T) token ids (usually input_ids; the shift by one happens inside), -100 where not counted;
                or (B,) classes with a classification head.
            output_hidden_states: also return the states that enter each block, and the normalised last ones.
            cache: a `KVCache` that holds the keys and values of earlier tokens and takes those of the new ones.

        Returns:
            Output with ``logits``, ``loss``, ``last_hidden_state``, ``hidden_states``.
        """
        return self.run(input_ids, attention_mask, None, labels, output_hidden_states, cache)
