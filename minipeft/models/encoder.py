"""The BERT encoder: every token sees every other, norms come after the residual sums (Devlin et al., NAACL 2019)."""

from .transformer import Transformer


class Encoder(Transformer):
    """BERT. ``head`` is a `ClassificationHead`, a `MaskedLMHead` or None."""

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, output_hidden_states=False):
        """Run the model.

        Args:
            input_ids: (B, T) ints.
            attention_mask: (B, T), 1 or True where a token is real; default: all are.
            token_type_ids: (B, T), 0 for the first sentence, 1 for the second; default: 0.
            labels: (B,) classes, or (B, T) token ids with -100 where there is nothing to predict, by head.
            output_hidden_states: also return the states that enter each block and those that leave the last.

        Returns:
            Output with ``logits``, ``loss``, ``last_hidden_state``, ``hidden_states``.
        """
        return self.run(input_ids, attention_mask, token_type_ids, labels, output_hidden_states)
