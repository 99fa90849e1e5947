"""What may act on training besides the gradients: a penalty on the loss, and a look at every step before and after it.

Regularisers, unfreezing schedules and adaptive ranks are hooks; the loop knows none of them by name.
"""


class Hook:
    """Base: each method does nothing. The loop calls them in the order in which they stand here, at every step."""

    def before_step(self, step, total, epoch, rng):
        """Before the forward pass of ``step`` (from 0) of ``total``, in ``epoch`` (from 0); ``rng`` is the step's own."""

    def penalty(self):
        """A Tensor without axes that is added to the loss, or None."""
        return None

    def after_backward(self, step, total):
        """The gradients stand in the parameters; the optimizer has not moved them yet."""

    def after_step(self, step, total):
        """The optimizer has moved the parameters."""

    def arrays(self):
        """{name: array} that a resumed run needs to go on with the same bits."""
        return {}

    def load_arrays(self, arrays):
        """Take back what `arrays` gave."""
