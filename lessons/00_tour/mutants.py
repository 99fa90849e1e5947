"""Wrong answers to the exercise of lesson 0."""

from minipeft.learn.claims import mutant


@mutant("00.1", "of_the_rest", "You divided by what is not trained; the share is of the whole.")
def share(trained, sizes):
    rest = sum(sizes) - sum(trained)
    return sum(trained) / rest if rest else float(bool(sizes))


@mutant("00.1", "arrays", "You counted the arrays; count the numbers in them.")
def share(trained, sizes):
    return len(trained) / len(sizes) if sizes else 0.0


@mutant("00.1", "no_numbers", "Without any numbers there is nothing to divide by: return 0 there.")
def share(trained, sizes):
    return sum(trained) / sum(sizes)


@mutant("00.1", "per_cent", "That is in per cent; the share is from 0 to 1.")
def share(trained, sizes):
    return 100 * sum(trained) / sum(sizes) if sizes else 0.0
