"""Scores of predicted classes: accuracy, F1, and Matthews correlation."""

import numpy as np


def confusion(predicted, actual, classes):
    """(C, C) counts: row = actual class, column = predicted class."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (np.asarray(actual, np.int64), np.asarray(predicted, np.int64)), 1)
    return table


def accuracy(predicted, actual, classes):
    """Share of the predictions that are right; 0 for none."""
    return float(np.mean(np.asarray(predicted) == np.asarray(actual))) if len(actual) else 0.0


def f1(predicted, actual, classes):
    """2 TP / (2 TP + FP + FN): of class 1 with two classes, else the mean over the classes (macro F1).

    A class that is neither predicted nor present counts 0, as in scikit-learn.
    """
    table = confusion(predicted, actual, classes)
    right, both = np.diag(table), table.sum(axis=0) + table.sum(axis=1)  # (C,), 2 TP + FP + FN
    each = np.divide(2 * right, both, out=np.zeros(classes), where=both > 0)
    return float(each[1] if classes == 2 else each.mean())


def matthews(predicted, actual, classes):
    """Correlation of predicted and actual classes, in [-1, 1]; 0 where either is constant.

    (c s - sum p_k a_k) / sqrt((s^2 - sum p_k^2)(s^2 - sum a_k^2)), with c right of s, p_k predicted and a_k actual
    counts. Gorodkin, Computational Biology and Chemistry 28, 2004, equation 8.
    """
    table = confusion(predicted, actual, classes).astype(np.float64)
    p, a, right, total = table.sum(axis=0), table.sum(axis=1), np.trace(table), table.sum()
    under = np.sqrt((total**2 - (p**2).sum()) * (total**2 - (a**2).sum()))
    return float((right * total - (p * a).sum()) / under) if under > 0 else 0.0


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
