"""Upper bounds that see all classes at once: logistic regression on features, a linear SVM on TF-IDF."""

from collections.abc import Callable

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float, Int

from experiments.continual_methods.learner import BUCKETS, Examples, Grams, Scores, log_softmax, one_hot

ITERATIONS = 200  # of L-BFGS, at most


def joint_logistic(decay: float, train: Examples, labels: Int[np.ndarray, "N"], test: Examples, classes: int) -> Scores:
    """Scores of multinomial logistic regression on the features, with penalty ``decay ‖W‖²`` on the mean loss."""
    x, y = _with_one(train.features), one_hot(labels, classes)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(x.shape[1], classes)
        log_p = log_softmax(x @ w)
        gradient = x.T @ (np.exp(log_p) - y) / len(x) + 2 * decay * w
        return -float((log_p * y).sum()) / len(x) + decay * float((w**2).sum()), gradient.ravel()

    return _with_one(test.features) @ _minimize(loss, (x.shape[1], classes))


def joint_svm(cost: float, train: Examples, labels: Int[np.ndarray, "N"], test: Examples, classes: int) -> Scores:
    """Scores of linear SVMs, each class against the rest (squared hinge loss), on TF-IDF of words and word pairs."""
    counts = _matrix(train.grams)
    idf = np.log((1 + len(labels)) / (1 + np.asarray((counts > 0).sum(axis=0))[0])) + 1
    used = np.flatnonzero(np.asarray(counts.sum(axis=0))[0])
    x, answers = (_normalised(matrix[:, used], idf[used]) for matrix in (counts, _matrix(test.grams)))
    signs, transposed = 2 * one_hot(labels, classes) - 1, x.T.tocsr()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(x.shape[1], classes)
        margin = np.maximum(1 - signs * (x @ w), 0)
        gradient = w - 2 * cost * (transposed @ (signs * margin))
        return 0.5 * float((w**2).sum()) + cost * float((margin**2).sum()), gradient.ravel()

    return np.asarray(answers @ _minimize(loss, (x.shape[1], classes)))


def _minimize(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], shape: tuple[int, int]) -> np.ndarray:
    options = {"maxiter": ITERATIONS, "maxcor": 10}
    found = scipy.optimize.minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(shape)


def _with_one(x: Float[np.ndarray, "N width"]) -> Float[np.ndarray, "N width1"]:
    return np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)


def _matrix(grams: Grams) -> scipy.sparse.csr_matrix:
    """Counts [texts, buckets]; the one id that every text has becomes the constant."""
    ends = np.append(grams.starts, len(grams.ids))
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(grams.ids), np.float32), grams.ids, ends), shape=(len(grams.starts), BUCKETS)
    )
    matrix.sum_duplicates()
    return matrix


def _normalised(counts: scipy.sparse.csr_matrix, idf: np.ndarray) -> scipy.sparse.csr_matrix:
    weighted = counts.copy()
    weighted.data = 1 + np.log(weighted.data)
    weighted = weighted.multiply(idf[None]).tocsr()
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)))[:, 0]
    return scipy.sparse.diags_array(1 / np.maximum(lengths, 1e-12)) @ weighted
