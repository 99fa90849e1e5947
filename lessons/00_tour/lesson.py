# %% [markdown]
# # Lesson 0. A tour in five minutes
#
# **Why.** A language model that somebody has trained on much text can be adapted to a task of yours with a few labelled
# examples. Changing all its numbers works, and for each task leaves a copy as large as the model. *Parameter-efficient
# fine-tuning* changes a few numbers, or adds a few, and keeps the rest as it is. This course builds all of it from nothing: the
# gradients, the model, and each method, a dozen lines at a time.
#
# This lesson only looks around. Nothing has to be understood yet; every word comes back.

# %% [markdown]
# ## The idea in a picture
#
#      text ──► tokens ──► [ a pre-trained Transformer, millions of numbers, frozen ] ──► head ──► classes
#                                     ▲           ▲           ▲
#                                     │ a few numbers beside, inside or before it, which are trained
#
# The *head* is a small map from what the model makes of a text to the classes of the task. *Frozen* means: training does not
# touch it.

# %%
import tempfile

import numpy as np

from minipeft import LoRA, attach, load_pretrained
from minipeft.learn import fast, predict, show

rng = np.random.default_rng(0)
model = load_pretrained("toy:encoder", task="classify", labels=("terrible", "bad", "good", "great"), rng=rng)
total = sum(p.size for p in model.parameters())
print(f"{total:,} numbers in {sum(1 for _ in model.parameters())} arrays")

# %% [markdown]
# ## A method is attached, not built in
#
# `attach` freezes the model and puts a method at named places. The model's own code knows of no method. The one here is LoRA,
# which puts two thin matrices beside some of the model's own (lesson 8).

# %%
attachment = attach(model, LoRA(rank=4, alpha=8), rng=rng)
for part, count, formula in attachment.table()[:3]:
    print(f"{part:24s}{count:8,}  {formula}")
predict(f"LoRA of rank 4 sits beside two maps of each of the three blocks. How many numbers are trained, the head left aside, "
        f"beside {total:,}?",
        f"{attachment.trainable_without_head:,}")

# %% [markdown]
# ## The equation
#
# The share of the model that is trained is the first number to ask for, and the only equation of this lesson:
#
# $$\text{share} = \frac{\text{numbers that are trained}}{\text{numbers in all}} .$$
#
# ## The exercise
#
# Every lesson has exercises: a function whose body is yours to write, in a file of its own. `minipeft learn` watches the file
# and says at each save whether it is right, and if not, what is wrong. This first one is solved, so that you see what a solved
# one looks like. Break it, save, and look; then mend it.

# %%
#@exercise 00.1 lesson:share
#@ Return which share of a model is trained, from 0 to 1: the sum of `trained` (a list of array sizes) over the sum of `sizes`.
#@ A model without any numbers has the share 0.
### BEGIN SOLUTION
def share(trained, sizes):
    """sum of trained / sum of sizes, a float"""
    whole = sum(sizes)
    return sum(trained) / whole if whole else 0.0
### END SOLUTION


with_lora = total + attachment.trainable_without_head
print(f"{100 * share([attachment.trainable_without_head], [with_lora]):.2f} % of the model and what was added is trained")

# %% [markdown]
# ## What the numbers show
#
# A real fine-tuning, small enough to watch: short reviews of a toy world in four classes, LoRA against the head alone.
# `execute` trains, measures the *accuracy* (the share of texts whose class is told right) on texts that were not trained on, and
# saves.

# %%
from minipeft.compare.run import Run, execute
from minipeft.compare.sources import written

results = {}
with tempfile.TemporaryDirectory() as folder:
    data = written("toy:rating", folder)
    for method in ("head", "lora"):
        results[method] = execute(Run("toy:encoder", data, method, epochs=1, train_limit=64 if fast() else None),
                                  f"{folder}/{method}", quiet=True)
        print(f"{method:5s} accuracy {results[method]['score']:.3f}, {results[method]['trainable']:,} numbers trained, "
              f"{1000 * results[method]['size_mb']:.0f} kB on disk")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 3))
for method, result in results.items():
    axes.plot(result["losses"], label=method)
axes.set_xlabel("step")
axes.set_ylabel("training loss")
axes.legend()
show(figure, "losses", "Training loss against steps: " + ", ".join(
    f"{method} ends at {np.mean(result['losses'][-5:]):.2f}" for method, result in results.items()))

# %% [markdown]
# On a real model, MiniLM with 22.7 million numbers, and on SST-2, sentences of film reviews in two classes, the README has such a
# table for ten methods. The model as it was has an accuracy of 0.505, with the head alone trained 0.648, with LoRA on 0.33 % of
# the numbers 0.843, and with all numbers trained 0.844.
#
# ## Where it breaks
#
# The head alone sees what the frozen model happens to make of a text; what the model does not bring out, no head can find.
# Which few numbers go how far is what the next sixteen lessons are about.
#
# ## Read the package
#
# `README.md` has a path through the code, from the gradient up. Start with `minipeft/autograd/tensor.py` when you come to
# lesson 1. What this lesson called is `minipeft/methods/attach.py`: which of its lines freeze the model?
#
# ## Sources
#
# - Howard, Ruder, *ULMFiT*, ACL 2018, arXiv:1801.06146: fine-tuning a language model as it is done since.
# - Houlsby et al., ICML 2019, arXiv:1902.00751, section 1: a copy of the model for each task, and why one would not want it.
# - Ding et al., Nature Machine Intelligence 5, 2023: a survey of the methods of this course.
